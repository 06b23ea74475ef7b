"""The request to a judge (Appendix D.3): one user message, and the rubric as system prompt."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from rvedit.evaluation.scores import PARSER_VERSION
from rvedit.io.chat.frames import FrameSettings
from rvedit.io.chat.messages import ChatRequest, Jpeg, Sampling, Video
from rvedit.io.chat.retries import RetryPolicy

FRAMES = FrameSettings(count=5, long_side=512, quality=85)
REQUEST_VERSION = 1
"""Increase it when the request for the same item changes: cached replies depend on it."""
SOURCE_HEADER = "Frames sampled from the source video (before editing):"
EDITED_HEADER = "Frames sampled from the edited video (after editing):"
CLOSING = (
    "Compare these two videos based on the sampled frames and provide the requested scores in the specified "
    "format."
)
FORMAT_TRIES = 3
SEEDS_PER_REPEAT = 100

Parts = tuple[str | Jpeg | Video, ...]
"""Texts and media of a user message, in order."""
Probe = Literal["none", "identity", "swap"]
"""A test of the judge: none; source shown as edit (compliance should collapse); source and edit swapped."""


@dataclass(frozen=True)
class JudgeSettings:
    """Settings of a chat model as judge; verdicts depend on the first three."""

    sampling: Sampling
    probe: Probe = "none"
    rubric_in: Literal["system", "user"] = "system"
    """The message that has the rubric: some servers advise against system prompts for visual tasks."""
    concurrency: int = 16
    """Maximum number of requests in flight."""
    timeout: float = 300.0
    """Seconds that one request may take."""
    retry_dropped: bool = False
    """Ask again about items whose replies could not be parsed in an earlier run."""
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    batch_api: bool = False
    """Send requests as jobs, which are cheaper and take hours, instead of one by one."""


def judge_request(
    model: str, rubric: str, parts: Parts, settings: JudgeSettings, repeat: int = 0
) -> ChatRequest:
    """Return the request for a verdict. If the sampling has a seed, each repeat gets its own."""
    system = rubric if settings.rubric_in == "system" else None
    if system is None:
        parts = (rubric, *parts)
    sampling = settings.sampling
    if sampling.seed is not None:
        sampling = replace(sampling, seed=sampling.seed + SEEDS_PER_REPEAT * repeat)
    version = f"judge-{REQUEST_VERSION}.{PARSER_VERSION}"
    return ChatRequest(model, system, parts, sampling, version, repeat)

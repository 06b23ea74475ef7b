"""What a judge is asked (Appendix D.3): one turn, the rubric with the instruction as its system text."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from rvedit.evaluation.rubrics import with_instruction
from rvedit.evaluation.scores import PARSER_VERSION
from rvedit.io.chat.frames import FrameSettings
from rvedit.io.chat.messages import ChatRequest, Jpeg, Sampling, Video

FRAMES = FrameSettings(count=5, long_side=512, quality=85)
REQUEST_VERSION = 1
"""Raised when the same item would be asked about in other words."""
SOURCE_HEADER = "Frames sampled from the source video (before editing):"
EDITED_HEADER = "Frames sampled from the edited video (after editing):"
CLOSING = (
    "Compare these two videos based on the sampled frames and provide the requested scores in the specified "
    "format."
)
FORMAT_TRIES = 3
SEEDS_A_REPEAT = 100

Probe = Literal["none", "identity", "swap"]
"""The edit as it is; the source in its place (compliance should collapse); the headers exchanged."""


@dataclass(frozen=True)
class JudgeSettings:
    """What a verdict depends on, beside the item and the model."""

    sampling: Sampling = field(default_factory=lambda: Sampling(max_tokens=1024, seed=0))
    probe: Probe = "none"
    rubric_in: Literal["system", "user"] = "system"
    """Where the rubric stands: some servers advise against system messages for visual tasks."""


def judge_request(
    model: str,
    rubric: str,
    instruction: str,
    parts: tuple[str | Jpeg | Video, ...],
    settings: JudgeSettings,
    repeat: int = 0,
) -> ChatRequest:
    """The request for a verdict; with a seed, each repeat has another one."""
    system: str | None = None
    told = with_instruction(rubric, instruction)
    if settings.rubric_in == "user":
        parts = (told, *parts)
    else:
        system = told
    sampling = settings.sampling
    if sampling.seed is not None:
        sampling = replace(sampling, seed=sampling.seed + SEEDS_A_REPEAT * repeat)
    version = f"judge-{REQUEST_VERSION}.{PARSER_VERSION}"
    return ChatRequest(model, system, parts, sampling, version, repeat)

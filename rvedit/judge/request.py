"""What a judge is asked (Appendix D.3): one turn, the rubric with the instruction as its system text."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from rvedit.chat.frames import FrameSettings
from rvedit.chat.messages import ChatRequest, Jpeg, Sampling, Video
from rvedit.judge.rubrics import EDIT_PROMPT
from rvedit.judge.scores import PARSER_VERSION

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
PROBES: dict[str, str] = {
    "none": "the edit as it is",
    "identity": "the source in the edit's place: instruction compliance should collapse",
    "swap": "the headers exchanged, the edit as the source and the source as the edit",
}


@dataclass(frozen=True)
class JudgeSettings:
    """What a verdict depends on, beside the item and the model."""

    sampling: Sampling = field(default_factory=lambda: Sampling(max_tokens=1024, seed=0))
    probe: Probe = "none"
    rubric_in: Literal["system", "user"] = "system"
    """Where the rubric stands: some servers advise against system messages for visual tasks."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        sampling = {k: v for k, v in vars(self.sampling).items() if v not in (None, {})}
        return {"sampling": sampling, "probe": self.probe, "rubric_in": self.rubric_in}


def judge_request(
    model: str,
    rubric: str,
    instruction: str,
    parts: tuple[str | Jpeg | Video, ...],
    settings: JudgeSettings,
    repeat: int = 0,
) -> ChatRequest:
    """The request for a verdict; with a seed, each repeat has another one.

    The instruction goes into the rubric last and verbatim, whatever braces or marks it holds.
    """
    system: str | None = rubric.replace(EDIT_PROMPT, instruction)
    if settings.rubric_in == "user":
        assert system is not None
        parts, system = (system, *parts), None
    sampling = settings.sampling
    if sampling.seed is not None:
        sampling = replace(sampling, seed=sampling.seed + SEEDS_A_REPEAT * repeat)
    version = f"judge-{REQUEST_VERSION}.{PARSER_VERSION}"
    return ChatRequest(model, system, parts, sampling, version, repeat)

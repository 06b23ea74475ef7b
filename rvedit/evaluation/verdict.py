"""A judge's word on one edit: scores, or the reason that it was dropped; never a zero."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from rvedit.evaluation.scores import Scores


@dataclass(frozen=True)
class Verdict:
    """One line of scores.jsonl, with all that is needed to audit it."""

    item: str
    category: str
    instruction: str
    judge: str
    """qwen, gemini or reference."""
    protocol: str
    probe: str
    repeat: int
    source: str
    edited: str
    scores: Scores | None = None
    dropped: str | None = None
    """Why there are no scores."""
    reasoning: str = ""
    reply: str = ""
    """Word for word."""
    model: str = ""
    """The name that the answering side gave itself."""
    asked_model: str = ""
    response_id: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """Of the reply that counted."""
    transport_retries: int = 0
    format_retries: int = 0
    from_cache: bool = False
    request: str = ""
    """Digest of rubric, frames, model, sampling and parser."""
    source_frames: tuple[str, ...] = ()
    """Digests of the pictures shown."""
    edited_frames: tuple[str, ...] = ()
    measures: dict[str, float | None] = dataclasses.field(default_factory=dict)
    """Of the reference judge: what its scores are functions of."""
    note: str = ""
    """What is odd about the clips, such as another length."""

    def as_row(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Verdict:
        """The inverse of `as_row`; unknown fields are passed over."""
        known = {field.name for field in dataclasses.fields(cls)}
        values = {key: value for key, value in row.items() if key in known}
        for name in ("source_frames", "edited_frames"):
            values[name] = tuple(values.get(name, ()))
        if values.get("scores"):
            values["scores"] = Scores(**values["scores"])
        return cls(**values)

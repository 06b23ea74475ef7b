"""A judge's verdict on one edit: scores, measures or answers, or the reason for none; never a zero."""

from __future__ import annotations

from dataclasses import dataclass, field

from rvedit.evaluation.scores import Scores


@dataclass(frozen=True)
class Verdict:
    """One line of scores.jsonl, with everything needed to audit it."""

    item: str
    category: str
    instruction: str
    judge: str
    """qwen, gemini, reference, reward or measures."""
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
    """The reply verbatim."""
    model: str = ""
    """The model's name as the server reports it."""
    asked_model: str = ""
    """The model's name in the request."""
    response_id: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """Of the final reply only, as are the prompt tokens."""
    refusal: str = ""
    reasoning_content: str = ""
    """What the server returned as reasoning, if the reply is empty."""
    transport_retries: int = 0
    format_retries: int = 0
    from_cache: bool = False
    request: str = ""
    """Digest of rubric, frames, model, sampling and parser version."""
    source_frames: tuple[str, ...] = ()
    """Digests of the frames shown as the source."""
    edited_frames: tuple[str, ...] = ()
    measures: dict[str, float | None] = field(default_factory=dict)
    """What the judge measured; the reference judge's scores are computed from it."""
    answers: dict[str, str] = field(default_factory=dict)
    """Of a checklist: the answer to each question; empty if the reply has none."""
    note: str = ""
    """Anything unusual about the clips, such as different lengths."""

"""Scores of an edit, and how they are read from a judge's reply (Appendix D.3)."""

from __future__ import annotations

import html
import math
import re
from dataclasses import dataclass, fields

from rvedit.io.chat.messages import BadReplyError
from rvedit.io.chat.text import plain_text

PARSER_VERSION = 1
"""Raised when the same reply would be read differently: verdicts are cached by it."""

AXIS_LABELS = {
    "ic": "Instruction Compliance",
    "cf": "Consistency & Detail Fidelity",
    "vq": "Visual Quality & Stability",
}
AXES = tuple(AXIS_LABELS)


@dataclass(frozen=True)
class Scores:
    """The three axes, on the protocol's scale."""

    ic: float
    """Instruction compliance: is what was asked for there?"""
    cf: float
    """Consistency and detail fidelity: is the rest as it was?"""
    vq: float
    """Visual quality and stability: is it free of artefacts and flicker?"""

    @property
    def mean(self) -> float:
        """Of the axes."""
        return sum(self.values) / len(AXES)

    @property
    def values(self) -> tuple[float, float, float]:
        """In the order of AXES."""
        return self.ic, self.cf, self.vq


assert tuple(field.name for field in fields(Scores)) == AXES

# Between a label and its number stand marks and blanks, never words: "<integer 1-100>" is no score.
_GAP = (
    r"[\s:：=|\"'>)\]→]*(?:\(\s*1\s*[-–]\s*\d+\s*\)[\s:：=]*)?(?:[-–—]+\s+)?(?:score\s*[:=]?\s*)?\(?"
    # The next item's number in a list is no score.
    r"(?!\d{1,2}[.)][^\S\n]*[^\w\n]{0,3}(?:instruction|consistency|visual)\s)"
)
_NUMBER = r"(?P<sign>[-−+]?)(?P<number>\d+(?:\.\d+)?|\.\d+)"
# What makes a number something else than a score of the scale: a range, another scale, a longer number.
_AFTER = (
    r"(?P<after>\s*(?:/|out\s+of)\s*\d+(?:\.\d+)?|[^\S\n]*%"
    r"|[^\S\n]*[-–—][^\S\n]*\d+(?:\.\d+)?(?=[^\S\n]*(?:[).,;|*]|$|\n))|[\d,.]*\d|[A-Za-z]\w*)?"
)
_AMP = r"(?:&|and|\+)"
_WORDS = {
    "ic": r"instruction\s+compliance",
    "cf": rf"consistency\s*{_AMP}\s*detail\s+fidelity",
    "vq": rf"visual\s+quality\s*{_AMP}\s*stability",
}
_ABBREVIATION = r"(?:\s*\((?:IC|CF|VQ)\))?"
_ANYWHERE = {
    axis: re.compile(words + _ABBREVIATION + _GAP + _NUMBER + _AFTER, re.IGNORECASE)
    for axis, words in _WORDS.items()
}
_LINE_START = {
    axis: re.compile(
        # No line ends in here: a reply of blank lines would take cubic time.
        r"^[^\S\n]*[\-–—>#|\"'{(\[ \t]*(?:\d{1,2}[.)][^\S\n]*)?[\"'| \t]*" + pattern.pattern,
        re.IGNORECASE | re.MULTILINE,
    )
    for axis, pattern in _ANYWHERE.items()
}
_REASONING = re.compile(
    r"^[^\w\n]*(?:brief\s+)?reasoning[^\w\n]*?[:：][^\S\n]*(?P<text>.+)$", re.IGNORECASE | re.MULTILINE
)
_EMPHASIS = re.compile(r"[*_`~•●▪]+|\\(?=[*_&])")


def read_scores(reply: str, low: int = 1, high: int = 100) -> Scores:
    """The three scores of a reply, each the nearest integer.

    Anchored on the axes' labels, whatever order and decoration they come in. A label at the start of a line
    counts before one inside a sentence; of several the last, which is the reply's conclusion.

    Raises BadReplyError, with the reason, where an axis is missing, outside [low, high], a range, or on
    another scale.
    """
    text = _plain(reply)
    return Scores(**{axis: _score(axis, text, low, high) for axis in AXES})


def read_reasoning(reply: str) -> str:
    """The reply's line of reasoning; empty where there is none."""
    found = _REASONING.search(_plain(reply))
    return found["text"].strip() if found else ""


def _plain(reply: str) -> str:
    """Without thoughts, emphasis and entities."""
    return _EMPHASIS.sub("", html.unescape(plain_text(reply)))


def _score(axis: str, text: str, low: int, high: int) -> float:
    label = AXIS_LABELS[axis]
    found = list(_LINE_START[axis].finditer(text)) or list(_ANYWHERE[axis].finditer(text))
    if not found:
        raise BadReplyError(f"no score for {label}")
    match = found[-1]
    after = (match["after"] or "").strip()
    scale = re.fullmatch(rf"(?:/|out\s+of)\s*{high}(?:\.0+)?", after, re.IGNORECASE)
    if after and not scale and not (after == "%" and high == 100):
        said = f"{match['number']}{match['after']}"
        raise BadReplyError(f"{label} is no single score of {low} to {high}: {said}")
    number = float(match["number"]) * (-1 if match["sign"] in ("-", "−") else 1)
    score = math.floor(number + 0.5)
    if not low <= score <= high:
        raise BadReplyError(f"{label} is {number:g}, outside {low} to {high}")
    return float(score)

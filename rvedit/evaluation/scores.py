"""Scores of an edit, and their parser for a judge's reply (Appendix D.3)."""

from __future__ import annotations

import html
import math
import re
from dataclasses import dataclass, fields

from rvedit.io.chat.messages import BadReplyError
from rvedit.io.chat.text import plain_text

PARSER_VERSION = 1
"""Increase it when the same reply would be parsed differently: cached verdicts depend on it."""

AXIS_LABELS = {
    "ic": "Instruction Compliance",
    "cf": "Consistency & Detail Fidelity",
    "vq": "Visual Quality & Stability",
}
AXES = tuple(AXIS_LABELS)


@dataclass(frozen=True)
class Scores:
    """Scores on the three axes, on the protocol's scale."""

    ic: float
    """Instruction compliance: was the instruction followed?"""
    cf: float
    """Consistency and detail fidelity: is the rest of the video unchanged?"""
    vq: float
    """Visual quality and stability: is the video free of artifacts and flicker?"""

    @property
    def mean(self) -> float:
        """Mean of the axes."""
        return sum(self.values) / len(AXES)

    @property
    def values(self) -> tuple[float, float, float]:
        """The scores in the order of AXES."""
        return self.ic, self.cf, self.vq


assert tuple(field.name for field in fields(Scores)) == AXES

# Between a label and its number only punctuation and spaces are allowed: "<integer 1-100>" is not a score.
_GAP = (
    r"[\s:：=|\"'>)\]→]*(?:\(\s*1\s*[-–]\s*\d+\s*\)[\s:：=]*)?(?:[-–—]+\s+)?(?:score\s*[:=]?\s*)?\(?"
    # The number of the next list item is not a score.
    r"(?!\d{1,2}[.)][^\S\n]*[^\w\n]{0,3}(?:instruction|consistency|visual)\s)"
)
_NUMBER = r"(?P<sign>[-−+]?)(?P<number>\d+(?:\.\d+)?|\.\d+)"
# What follows if the number is not a score on this scale: a range, another scale, more digits or letters.
_AFTER = (
    r"(?P<after>\s*(?:/|out\s+of)\s*\d+(?:\.\d+)?|[^\S\n]*%"
    r"|[^\S\n]*[-–—][^\S\n]*\d+(?:\.\d+)?(?=[^\S\n]*(?:[).,;|*]|$|\n))|[\d,.]*\d|[A-Za-z]\w*)?"
)
_AMP = r"(?:&|and|\+)"
_LABELS = {
    "ic": r"instruction\s+compliance",
    "cf": rf"consistency\s*{_AMP}\s*detail\s+fidelity",
    "vq": rf"visual\s+quality\s*{_AMP}\s*stability",
}
_ABBREVIATION = r"(?:\s*\((?:IC|CF|VQ)\))?"
_ANYWHERE = {
    axis: re.compile(label + _ABBREVIATION + _GAP + _NUMBER + _AFTER, re.IGNORECASE)
    for axis, label in _LABELS.items()
}
_LINE_START = {
    axis: re.compile(
        # Without newlines: on a reply of blank lines the match would take cubic time.
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
    """Return the three scores of a reply, each rounded to the nearest integer.

    Scores are found by the axes' labels, in any order and decoration. Labels at the start of a line take
    precedence over labels inside a sentence; of several, the last one counts, as the reply's conclusion.

    Raises BadReplyError with the reason if an axis is missing, outside [low, high], a range, or on another
    scale.
    """
    text = _plain(reply)
    return Scores(**{axis: _score(axis, text, low, high) for axis in AXES})


def read_reasoning(reply: str) -> str:
    """Return the reply's line of reasoning; empty if it has none."""
    match = _REASONING.search(_plain(reply))
    return match["text"].strip() if match else ""


def _plain(reply: str) -> str:
    """Return the reply without thinking, emphasis and HTML entities."""
    return _EMPHASIS.sub("", html.unescape(plain_text(reply)))


def _score(axis: str, text: str, low: int, high: int) -> float:
    label = AXIS_LABELS[axis]
    matches = list(_LINE_START[axis].finditer(text)) or list(_ANYWHERE[axis].finditer(text))
    if not matches:
        raise BadReplyError(f"no score for {label}")
    match = matches[-1]
    after = (match["after"] or "").strip()
    scale = re.fullmatch(rf"(?:/|out\s+of)\s*{high}(?:\.0+)?", after, re.IGNORECASE)
    if after and not scale and not (after == "%" and high == 100):
        raise BadReplyError(
            f"{label} is not a single score of {low} to {high}: {match['number']}{match['after']}"
        )
    number = float(match["number"]) * (-1 if match["sign"] in ("-", "−") else 1)
    score = math.floor(number + 0.5)
    if not low <= score <= high:
        raise BadReplyError(f"{label} is {number:g}, outside {low} to {high}")
    return float(score)

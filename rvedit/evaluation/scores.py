"""Scores of an edit, and their parser for a judge's reply (Appendix D.3)."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache

from rvedit.io.chat.messages import BadReplyError
from rvedit.io.chat.text import plain_text

PARSER_VERSION = 2
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

# What may stand around a number besides spaces.
_OPENING = r"""["'“”‘’«»「『【〈《〔(\[{]"""
_CLOSING = r"""["'“”‘’«»」』】〉》〕)\]}]"""
# Between a label and its number: a note of the scale such as "(1-100)", punctuation, and the word "score".
_GAP = (
    r"(?:[(\[]\s*(?:[01]\s*(?:[-–—~]|to)\s*\d+|(?:out\s+of|/)\s*\d+)\s*[)\]]"
    rf"|[\s:=|→⇒~≈#]|{_OPENING}|{_CLOSING}|[-=]>|[-–—]+\s|(?<=\n)>"
    r"|\b(?:final\s+)?(?:score|rating|integer)\b)*"
)
# The number of the next list item is not a score.
_NO_LIST_ITEM = r"(?!\d[.)\]][^\S\n]*[^\w\n]{0,3}(?:instruction|consistency|visual)\s)"
_NUMBER = r"(?P<sign>[-−+]?)(?P<number>\d+(?:\.\d+)?|\.\d+)"
_AMP = r"(?:&|and|\+)?"
_ABBREVIATION = r"(?:\s*\((?:IC|CF|VQ)\))?"


@cache
def _patterns(label: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Return the patterns of a label and its number at the start of a line, and anywhere."""
    words = r"\s*".join(_AMP if word == "&" else re.escape(word) for word in label.split())
    anywhere = words + _ABBREVIATION + _GAP + _NO_LIST_ITEM + _NUMBER + r"(?=(?P<rest>.*))"
    # Without newlines: on a reply of blank lines the match would take cubic time.
    start = r"^[^\S\n]*[\-–—>#|\"'{(\[ \t]*(?:\d{1,2}[.)][^\S\n]*)?[\"'| \t]*"
    return (
        re.compile(start + anywhere, re.IGNORECASE | re.MULTILINE),
        re.compile(anywhere, re.IGNORECASE),
    )


# What follows a number on its line.
_GLUED = re.compile(r"[\d,.]*\d|[A-Za-z]\w*|\+")
_CLOSINGS = re.compile(rf"{_CLOSING}*")
_SCALE = re.compile(rf"\s*[(\[]?(?:/|\b(?:out\s+)?of\b)\s*{_OPENING}*(\d+(?:\.\d+)?)", re.IGNORECASE)
_UNIT = re.compile(r"\s*(?P<percent>%)|\s+(?:points?|pts?)\b|[分点점]", re.IGNORECASE)
_DASH = "[-–—‐‑−]"
_RANGE = re.compile(
    rf"(?:\s*(?:[~〜…±→⇒到至]|\.\.+|[-=]>|\b(?:up\s+)?(?:to|through|until|or|and)\b)\s*|{_DASH}){_OPENING}*\d",
    re.IGNORECASE,
)
# A comment may begin with a number, too.
_SECOND = re.compile(
    rf"(?P<dash>\s*{_DASH}+)?[\s,;]*{_NO_LIST_ITEM}{_OPENING}*(?P<number>\d+(?:\.\d+)?)"
    rf"(?P<end>{_CLOSING}*\s*(?:\.(?!\d)|[,;|]|$))?",
    re.IGNORECASE,
)
_REASONING = re.compile(
    r"^[^\w\n]*(?:brief\s+)?reasoning[^\w\n]*?[:：][^\S\n]*(?P<text>.+)$", re.IGNORECASE | re.MULTILINE
)
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}  # to ASCII
_STRUCK_OUT = re.compile(
    r"~~(?=\S)[^~\n]{1,500}~~|(?<![~\w])~(?=\S)[^~\n]{1,500}(?<=\S)~(?![\w~])"
    r"|<(s|del|strike)>.{0,500}?</\1>|\\(?:cancel|sout|st)\{[^{}\n]*\}|(?:\S[\u0335-\u0338])+",
    re.IGNORECASE,
)
# Closing tags, opening tags without a label or digit, and the placeholder of the prompt.
_TAG = re.compile(
    r"</[^<>\n]{1,60}>|<(?![^<>\n]*(?:\d|instruction|consistency|visual))[^<>\n]{1,60}>"
    r"|<integer\s1\s?[-–]\s?\d+>",
    re.IGNORECASE,
)
_ANGLE_BRACKETS = re.compile(r"<([^<>\n]{1,60})>")
_EMPHASIS = re.compile(
    r"[*_`$•●▪\u200b-\u200d\u2060\ufeff]+|\\(?:[fm]?box(?:ed)?|text[a-z]*|math[a-z]+)|\\(?![A-Za-z0-9\s])"
)


def read_scores(reply: str, low: int = 1, high: int = 100, labels: Mapping[str, str] = AXIS_LABELS) -> Scores:
    """Return the three scores of a reply, each rounded to the nearest integer.

    Scores are found by the axes' `labels`, in any order, decoration and brackets; struck-out text is ignored.
    Labels at the start of a line take precedence over labels inside a sentence; of several, the last one
    counts, as the reply's conclusion.

    Raises BadReplyError with the reason if an axis is missing, outside [low, high], on another scale, or has
    more than one number.
    """
    text = _plain(reply)
    return Scores(**{axis: _score(labels[axis], text, low, high) for axis in AXES})


def read_reasoning(reply: str) -> str:
    """Return the reply's line of reasoning; empty if it has none."""
    match = _REASONING.search(_plain(reply))
    return match["text"].strip() if match else ""


def _plain(reply: str) -> str:
    """Return the reply without thinking, struck-out text, tags, emphasis and HTML entities."""
    text = html.unescape(plain_text(reply)).translate(_FULL_WIDTH)
    text = _TAG.sub(" ", _STRUCK_OUT.sub("", text))
    return _EMPHASIS.sub("", _ANGLE_BRACKETS.sub(r"(\1)", text))


def _score(label: str, text: str, low: int, high: int) -> float:
    line_start, anywhere = _patterns(label)
    matches = list(line_start.finditer(text)) or list(anywhere.finditer(text))
    if not matches:
        raise BadReplyError(f"no score for {label}")
    sign, digits, rest = matches[-1].group("sign", "number", "rest")
    number = float(digits) * (-1 if sign in ("-", "−") else 1)
    if not _is_single(number, rest, high):
        raise BadReplyError(f"{label} is not a single score of {low} to {high}: {(digits + rest)[:40]}")
    score = math.floor(number + 0.5)
    if not low <= score <= high:
        raise BadReplyError(f"{label} is {number:g}, outside {low} to {high}")
    return float(score)


def _is_single(number: float, rest: str, high: int) -> bool:
    """Return whether `rest`, which follows a number, has neither another scale nor a second number."""
    if _GLUED.match(rest):
        return False
    rest = _CLOSINGS.sub("", rest, count=1)
    if scale := _SCALE.match(rest):
        if float(scale[1]) != high:
            return False
        rest = rest[scale.end() :]
    elif unit := _UNIT.match(rest):
        if unit["percent"] and high != 100:
            return False
        rest = rest[unit.end() :]
    rest = _CLOSINGS.sub("", rest, count=1)
    if _RANGE.match(rest):
        return False
    second = _SECOND.match(rest)
    if second is None:
        return True
    # "85 - 95, depending on the frame" has two numbers, "85 - 2 of 3 dogs" has one.
    ascends = second["dash"] is not None and float(second["number"]) > number
    return second["end"] is None and not ascends

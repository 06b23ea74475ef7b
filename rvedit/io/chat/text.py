"""Replies as plain words."""

from __future__ import annotations

import re

_CLOSED_THOUGHT = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_OPEN_THOUGHT = re.compile(r"<think(?:ing)?>.*", re.DOTALL | re.IGNORECASE)
# Some chat templates open the block themselves, so that the reply holds its end alone.
_THOUGHTS_END = re.compile(r".*</think(?:ing)?>", re.DOTALL | re.IGNORECASE)


def plain_text(reply: str) -> str:
    """A reply without its reasoning blocks and surrounding blanks; empty where it is all reasoning."""
    text = _CLOSED_THOUGHT.sub("", reply)
    text = _THOUGHTS_END.sub("", text)
    return _OPEN_THOUGHT.sub("", text).strip()

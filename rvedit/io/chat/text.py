"""Replies without reasoning."""

from __future__ import annotations

import re

_CLOSED_THOUGHT = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_OPEN_THOUGHT = re.compile(r"<think(?:ing)?>.*", re.DOTALL | re.IGNORECASE)
# Some chat templates write the opening tag into the prompt, so that the reply has the closing tag alone.
_THOUGHTS_END = re.compile(r".*</think(?:ing)?>", re.DOTALL | re.IGNORECASE)


def plain_text(reply: str) -> str:
    """Return a reply without reasoning blocks and surrounding whitespace; empty if it is all reasoning."""
    text = _CLOSED_THOUGHT.sub("", reply)
    text = _THOUGHTS_END.sub("", text)
    return _OPEN_THOUGHT.sub("", text).strip()

"""Replies without reasoning and special tokens."""

from __future__ import annotations

import re

_CLOSED_THOUGHT = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_OPEN_THOUGHT = re.compile(r"<think(?:ing)?>.*", re.DOTALL | re.IGNORECASE)
# Some chat templates write the opening tag into the prompt, so that the reply has the closing tag alone.
_THOUGHTS_END = re.compile(r"\A.*</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
# Such as <|begin_of_box|>, and the tags that some models are trained to put around their answers.
_SPECIAL_TOKEN = re.compile(r"<[|｜][^<>\n]{1,40}[|｜]>|</?answer>", re.IGNORECASE)


def plain_text(reply: str) -> str:
    """Return a reply without reasoning blocks, special tokens and surrounding whitespace.

    It is empty if the reply is all reasoning.
    """
    text = _CLOSED_THOUGHT.sub("", reply)
    text = _THOUGHTS_END.sub("", text)
    text = _OPEN_THOUGHT.sub("", text)
    return _SPECIAL_TOKEN.sub("", text).strip()

"""Parse a model's reply into a caption."""

from __future__ import annotations

import re

from rvedit.io.chat import BadReplyError, ChatReply, plain_text

_LABEL = re.compile(r"^[\W_]*(?:caption|description)[\s*_]*:[\s*_]*", re.IGNORECASE)
_REFUSAL = re.compile(
    r"^\W*(?:(?:i['’]m|i am) (?:very |so )?sorry|sorry|i apologi[sz]e|as an ai\b|"
    r"(?:unfortunately,? )?i (?:can(?:no|['’])t|am unable|['’]m unable|won['’]t|am not able))\b",
    re.IGNORECASE,
)
_QUOTES = {'"': '"', "“": "”", "'": "'", "*": "*"}
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")


def read_caption(reply: ChatReply) -> str:
    """Return one paragraph without reasoning, label, fences or quotation marks; raises BadReplyError."""
    if reply.finish_reason == "content_filter":
        raise BadReplyError("the endpoint's content filter withheld the reply")
    text = _unquote(" ".join(plain_text(reply.text).split()))
    text = _unquote(_LABEL.sub("", text))
    if not re.search(r"\w", text):
        if reply.finish_reason == "length":
            raise BadReplyError("empty text: reasoning used up max_tokens")
        raise BadReplyError("empty text")
    if _REFUSAL.match(text):
        raise BadReplyError(f"looks like a refusal: {text[:80]}")
    if reply.finish_reason != "length":
        return text
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    if not ends:
        raise BadReplyError("cut off at max_tokens within its first sentence")
    return text[: ends[-1]]


def _unquote(text: str) -> str:
    """Remove quotation marks around the whole text, but not those of quotations inside it."""
    text = text.strip("` ")
    while len(text) > 1 and _QUOTES.get(text[0]) == text[-1] and text[0] not in text[1:-1]:
        text = text[1:-1].strip("` ")
    return text

"""From a model's reply to a caption, or the reason that it is none."""

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
    """One paragraph without reasoning, label, fences or quotation marks; or BadReplyError with the reason."""
    if reply.finish_reason == "content_filter":
        raise BadReplyError("the endpoint's content filter withheld the reply")
    text = _unquoted(" ".join(plain_text(reply.text).split()))
    text = _unquoted(_LABEL.sub("", text))
    if not re.search(r"\w", text):
        if reply.finish_reason == "length":
            raise BadReplyError("empty text: max_tokens went into reasoning")
        raise BadReplyError("empty text")
    if _REFUSAL.match(text):
        raise BadReplyError(f"looks like a refusal: {text[:80]}")
    if reply.finish_reason == "length":
        return _whole_sentences(text)
    return text


def _unquoted(text: str) -> str:
    """Without one kind of mark around all of it; one that only ends or begins a quotation stays."""
    text = text.strip("` ")
    while len(text) > 1 and _QUOTES.get(text[0]) == text[-1] and text[0] not in text[1:-1]:
        text = text[1:-1].strip("` ")
    return text


def _whole_sentences(text: str) -> str:
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    if not ends:
        raise BadReplyError("cut off at max_tokens within its first sentence")
    return text[: ends[-1]]

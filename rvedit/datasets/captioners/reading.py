"""Parse a model's reply into a caption."""

from __future__ import annotations

import re

from rvedit.io.chat import BadReplyError, ChatReply, check_not_withheld, is_cut_off, plain_text

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
    check_not_withheld(reply)
    text = _unquote(" ".join(plain_text(reply.text).split()))
    text = _unquote(_LABEL.sub("", text))
    if not re.search(r"\w", text):
        if is_cut_off(reply):
            raise BadReplyError("empty text: reasoning used up the token limit: raise --max-tokens")
        # Unlike a judge's scores, a caption that was misplaced cannot be told from thoughts about the clip.
        alone = ", with reasoning_content alone" if reply.reasoning_content else ""
        raise BadReplyError(f"empty text{alone}")
    if _REFUSAL.match(text):
        raise BadReplyError(f"looks like a refusal: {text[:80]}")
    if not is_cut_off(reply):
        return text
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    if not ends:
        raise BadReplyError("cut off at max_tokens within its first sentence: raise --max-tokens")
    return text[: ends[-1]]


def _unquote(text: str) -> str:
    """Remove quotation marks around the whole text, but not those of quotations inside it."""
    text = text.strip("` ")
    while len(text) > 1 and _QUOTES.get(text[0]) == text[-1] and text[0] not in text[1:-1]:
        text = text[1:-1].strip("` ")
    return text

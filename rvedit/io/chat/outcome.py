"""Whether a reply is a complete answer: refusals, content filters, token limits and misplaced answers."""

from __future__ import annotations

from rvedit.io.chat.messages import BadReplyError, ChatReply

# Finish reasons in lower case, of OpenAI-compatible servers and of Gemini.
_TOKEN_LIMITS = frozenset({"length", "max_tokens", "model_length"})
_FILTERS = frozenset(
    {
        "blocklist",
        "content_filter",
        "image_safety",
        "jailbreak",
        "model_armor",
        "prohibited_content",
        "recitation",
        "safety",
        "spii",
    }
)
_FAILURES = frozenset({"abort", "cancelled", "error"})


def check_not_withheld(reply: ChatReply) -> None:
    """Raise BadReplyError if the model refused, a filter took the reply or the server broke off."""
    finish = _finish(reply)
    if reply.refusal:
        raise BadReplyError(f"the model refuses: {' '.join(reply.refusal.split())[:80]}")
    if finish in _FILTERS:
        raise BadReplyError(f"a content filter withheld the reply ({reply.finish_reason})")
    if finish in _FAILURES:
        raise BadReplyError(f"the server broke off the reply ({reply.finish_reason})")


def is_cut_off(reply: ChatReply) -> bool:
    """Return whether the reply ended at the token limit."""
    return _finish(reply) in _TOKEN_LIMITS


def answer_text(reply: ChatReply) -> str:
    """Return the text, or if it is empty the reasoning of a reply that ended by itself.

    A reasoning parser that finds no end of a thinking block returns the whole answer as reasoning. Those of
    vLLM do so where thinking is off. Raises BadReplyError if there is neither.
    """
    if reply.text.strip():
        return reply.text
    if reply.reasoning_content and _finish(reply) == "stop":
        return reply.reasoning_content
    missing = "there is reasoning_content alone" if reply.reasoning_content else "nothing was written"
    raise BadReplyError(f"the reply is empty: {missing} (finish_reason {reply.finish_reason})")


def _finish(reply: ChatReply) -> str:
    return (reply.finish_reason or "").lower()

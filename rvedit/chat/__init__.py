"""Asking multimodal models: frames as JPEG, requests in flight, retries, and a journal of what was answered.

`Asker(chat, journal).ask(request, read)` is all that a captioner or a judge needs: `chat` is the model's side
(`EndpointChat`, `LocalChat`), `journal` remembers answers by the content of their questions, and `read` turns
a reply into what was asked for, or refuses it. No torch and no HTTP client is imported before it is used.
"""

from rvedit.chat.asker import Answer, Asker, lookup
from rvedit.chat.endpoint import Endpoint, EndpointChat
from rvedit.chat.frames import Frames, FrameSettings, expected_tokens, file_key, grey_picture, take_frames
from rvedit.chat.journal import Journal
from rvedit.chat.messages import (
    BadReplyError,
    Chat,
    ChatError,
    ChatReply,
    ChatRequest,
    Jpeg,
    Sampling,
    UnreadableError,
    Video,
)
from rvedit.chat.retries import RetryPolicy
from rvedit.chat.text import plain_text

__all__ = [
    "Answer",
    "Asker",
    "BadReplyError",
    "Chat",
    "ChatError",
    "ChatReply",
    "ChatRequest",
    "Endpoint",
    "EndpointChat",
    "FrameSettings",
    "Frames",
    "Journal",
    "Jpeg",
    "RetryPolicy",
    "Sampling",
    "UnreadableError",
    "Video",
    "expected_tokens",
    "file_key",
    "grey_picture",
    "lookup",
    "plain_text",
    "take_frames",
]

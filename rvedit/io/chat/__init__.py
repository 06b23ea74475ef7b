"""Asking multimodal models: frames as JPEG, requests in flight, retries, and a journal of what was answered.

A captioner or a judge needs `CachedChatClient(chat, journal).ask(request, parse)` alone: `chat` is the model
(`EndpointChat`, `LocalChat`, `GeminiChat`), `journal` stores answers by the content of their requests, and
`parse` turns a reply into the result or rejects it. Neither torch nor an HTTP client is imported before use.
"""

from rvedit.io.chat.asker import Answer, CachedChatClient, lookup
from rvedit.io.chat.endpoint import Endpoint, EndpointChat
from rvedit.io.chat.frames import Frames, FrameSettings, expected_tokens, file_key, grey_picture, take_frames
from rvedit.io.chat.journal import Journal
from rvedit.io.chat.messages import (
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
from rvedit.io.chat.retries import RetryPolicy
from rvedit.io.chat.text import plain_text

__all__ = [
    "Answer",
    "BadReplyError",
    "CachedChatClient",
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

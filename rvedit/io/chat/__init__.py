"""Clients of multimodal chat models: frames as JPEG, concurrent requests, retries and a journal of replies.

A captioner or a judge needs `CachedChatClient(chat, journal).ask(request, parse)` alone: `chat` is the model
(`EndpointChat`, `LocalChat`, `GeminiChat`), `journal` stores replies under the hashes of their requests, and
`parse` turns a reply into the result or rejects it. Neither torch nor an HTTP client is imported before use.
"""

from rvedit.io.chat.asker import Answer, CachedChatClient, lookup
from rvedit.io.chat.batches import BatchChat
from rvedit.io.chat.endpoint import Endpoint, EndpointChat
from rvedit.io.chat.frames import FrameReader, FrameSettings, file_key, gray_image, take_frames
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
from rvedit.io.chat.outcome import answer_text, check_not_withheld, is_cut_off
from rvedit.io.chat.retries import RetryPolicy
from rvedit.io.chat.text import plain_text

__all__ = [
    "Answer",
    "BadReplyError",
    "BatchChat",
    "CachedChatClient",
    "Chat",
    "ChatError",
    "ChatReply",
    "ChatRequest",
    "Endpoint",
    "EndpointChat",
    "FrameReader",
    "FrameSettings",
    "Journal",
    "Jpeg",
    "RetryPolicy",
    "Sampling",
    "UnreadableError",
    "Video",
    "answer_text",
    "check_not_withheld",
    "file_key",
    "gray_image",
    "is_cut_off",
    "lookup",
    "plain_text",
    "take_frames",
]

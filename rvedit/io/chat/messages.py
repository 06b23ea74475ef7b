"""Requests, replies and errors of chat models."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Protocol


@dataclass(frozen=True)
class Jpeg:
    """An image, identified by its digest; the data may be missing if only a request's key is needed."""

    sha256: str
    data: bytes = field(default=b"", repr=False, compare=False)

    @classmethod
    def of(cls, data: bytes) -> Jpeg:
        """Return the image with this data."""
        return cls(hashlib.sha256(data).hexdigest(), data)


@dataclass(frozen=True)
class Video:
    """A whole video file, identified by its digest; the data may be missing, as in `Jpeg`."""

    sha256: str
    data: bytes = field(default=b"", repr=False, compare=False)
    mime: str = "video/mp4"

    @classmethod
    def of(cls, data: bytes, mime: str = "video/mp4") -> Video:
        """Return the video with this data."""
        return cls(hashlib.sha256(data).hexdigest(), data, mime)


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters; None means the model's default.

    `max_tokens` limits new tokens, including hidden reasoning. `extra` is merged into the request's body, as
    in {"chat_template_kwargs": {"enable_thinking": False}}, with None to remove a key; a local model accepts
    only that key.
    """

    max_tokens: int = 512
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def overridden(self, max_tokens: int | None, extra: dict[str, Any]) -> Sampling:
        """Return the parameters with another `max_tokens`, unless it is None, and with more of `extra`."""
        limit = self.max_tokens if max_tokens is None else max_tokens
        return replace(self, max_tokens=limit, extra={**self.extra, **extra})


@dataclass(frozen=True)
class ChatRequest:
    """One turn: a system prompt, then text, images and videos in order.

    `version` is the caller's version of its prompt and its parser, `repeat` numbers equal requests that need
    independent replies; both are part of the key.
    """

    model: str
    system: str | None
    parts: tuple[str | Jpeg | Video, ...]
    sampling: Sampling
    version: str
    repeat: int = 0

    @cached_property
    def key(self) -> str:
        """Return the SHA-256 digest of all fields, which can all change the reply."""
        parts = [
            part if isinstance(part, str) else {type(part).__name__.lower(): part.sha256}
            for part in self.parts
        ]
        content = {
            "model": self.model,
            "system": self.system,
            "parts": parts,
            "sampling": asdict(self.sampling),
            "version": self.version,
            "repeat": self.repeat,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class ChatReply:
    """A reply. `model` is the name that the server reports.

    `refusal` is the server's field of that name. `reasoning_content` is kept only if `text` is empty.
    """

    text: str
    model: str
    finish_reason: str | None = None
    response_id: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    refusal: str = ""
    reasoning_content: str = ""


class ChatError(Exception):
    """A request that got no reply; the message is a short reason without API keys.

    `scope` is what failed: this "attempt" only, so that a retry may succeed (after `retry_after` seconds, if
    the server names them); the "request", however often it is sent; or "all" requests.
    """

    def __init__(
        self, reason: str, scope: Literal["attempt", "request", "all"], retry_after: float | None = None
    ) -> None:
        super().__init__(reason)
        self.scope = scope
        self.retry_after = retry_after


class UnreadableError(ChatError):
    """No try got a reply that could be parsed; `reply` is the last one."""

    def __init__(self, reason: str, reply: ChatReply) -> None:
        super().__init__(reason, "request")
        self.reply = reply


class BadReplyError(Exception):
    """A reply that does not contain what was asked for; the message is the reason."""


class Chat(Protocol):
    """A chat model."""

    async def check(self, probe: ChatRequest) -> None:
        """Raise UserError if requests like `probe` cannot be answered; costs a few tokens at most."""

    async def complete(self, request: ChatRequest) -> ChatReply:
        """Return the reply to one attempt. Raises ChatError."""

    async def close(self) -> None:
        """Release connections or weights."""

"""What is asked and what comes back, whichever model answers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol


@dataclass(frozen=True)
class Jpeg:
    """A picture, known by its digest; the bytes may be absent where only a request's key is wanted."""

    sha256: str
    data: bytes = field(default=b"", repr=False, compare=False)

    @classmethod
    def of(cls, data: bytes) -> Jpeg:
        """The picture with these bytes."""
        return cls(hashlib.sha256(data).hexdigest(), data)


@dataclass(frozen=True)
class Video:
    """A whole clip as a file's bytes, known by its digest, which may be all that there is."""

    sha256: str
    data: bytes = field(default=b"", repr=False, compare=False)
    mime: str = "video/mp4"

    @classmethod
    def of(cls, data: bytes, mime: str = "video/mp4") -> Video:
        """The clip with these bytes."""
        return cls(hashlib.sha256(data).hexdigest(), data, mime)


@dataclass(frozen=True)
class Sampling:
    """How a reply is drawn; what is none is the model's own default.

    `max_tokens` counts new tokens, hidden reasoning among them. `extra` goes into the request's body as it
    is, such as {"chat_template_kwargs": {"enable_thinking": False}}; a local model takes only that one key.
    """

    max_tokens: int = 512
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ChatRequest:
    """One turn: a system text, then texts and pictures in their order.

    `version` is the asker's own (of its prompt and of its reading of replies), `repeat` counts equal
    questions that want answers of their own; both are part of the key.
    """

    model: str
    system: str | None
    parts: tuple[str | Jpeg | Video, ...]
    sampling: Sampling
    version: str
    repeat: int = 0

    @cached_property
    def key(self) -> str:
        """Digest of all that can change the answer: texts, pictures, model, every sampling parameter, ..."""
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
    """What came back. `model` is the name that the answering side gives itself."""

    text: str
    model: str
    finish_reason: str | None = None
    response_id: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class ChatError(Exception):
    """A request that got no reply; the message is the reason, in a few words, free of keys.

    `scope` says what to do about it: ask "again" later (`retry_after`: seconds, where the server names them),
    give up this "request", or stop, as "all" others would fail like it.
    """

    def __init__(
        self, reason: str, scope: Literal["again", "request", "all"], retry_after: float | None = None
    ) -> None:
        super().__init__(reason)
        self.scope = scope
        self.retry_after = retry_after


class UnreadableError(ChatError):
    """Every try got a reply that does not hold what was asked for; `reply` is the last of them."""

    def __init__(self, reason: str, reply: ChatReply) -> None:
        super().__init__(reason, "request")
        self.reply = reply


class BadReplyError(Exception):
    """A reply that does not hold what was asked for; the message is the reason."""


class Chat(Protocol):
    """The model's side of a conversation."""

    async def check(self, probe: ChatRequest) -> None:
        """Raise UserError where requests like `probe` will not be answered; costs next to nothing."""

    async def complete(self, request: ChatRequest) -> ChatReply:
        """One try at a reply. Raises ChatError."""

    async def close(self) -> None:
        """Let go of connections or weights."""

"""Qwen3-VL, the paper's annotator (section 5), on an endpoint or on this machine."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rvedit.datasets.captioners import prompt
from rvedit.datasets.captioners.base import Caption
from rvedit.datasets.captioners.reading import read_caption
from rvedit.io.chat import (
    CachedChatClient,
    Chat,
    ChatError,
    ChatRequest,
    Endpoint,
    EndpointChat,
    Frames,
    FrameSettings,
    Journal,
    Jpeg,
    RetryPolicy,
    Sampling,
    expected_tokens,
    grey_picture,
    lookup,
)
from rvedit.io.errors import UserError

HUB_ID = "Qwen/Qwen3-VL-8B-Instruct"
PREFIX = "RVEDIT_CAPTION"
# Temperature and top_p are the model's own recommendation; six sentences are about 200 tokens.
SAMPLING = Sampling(max_tokens=512, temperature=0.7, top_p=0.8, seed=0)
EXPECTED_REPLY = 180
"""Tokens of a caption, for estimates."""
_BYTES_A_TOKEN = 4.5


@dataclass(frozen=True)
class CaptionSettings:
    """What a clip's caption depends on, beside the model, and how it is asked for.

    `concurrency` counts requests in flight; `timeout` is in seconds, of one request.
    """

    frames: FrameSettings = field(default_factory=FrameSettings)
    sampling: Sampling = SAMPLING
    concurrency: int = 16
    timeout: float = 120.0
    policy: RetryPolicy = field(default_factory=RetryPolicy)


class ChatCaptioner:
    """Describes clips by asking a chat model, and remembers what it said.

    Args:
        model: what is asked for; the name that the answering side gives itself goes into the captions.
        connect: makes the model's side; called once, by `check`, when there is something to ask.
        journal: remembers replies and the clips' frames.
        settings: the frames, the sampling and the requests in flight.
    """

    def __init__(
        self, model: str, connect: Callable[[], Chat], journal: Journal, settings: CaptionSettings
    ) -> None:
        self.model = model
        self.concurrency = settings.concurrency
        self.settings = settings
        self._connect = connect
        self._journal = journal
        self._frames = Frames(settings.frames, journal)
        self._chat: Chat | None = None
        self._client: CachedChatClient | None = None
        asked: dict[str, Any] = {
            "model": model,
            "system": prompt.SYSTEM,
            "before_frames": prompt.BEFORE_FRAMES,
            "after_frames": prompt.AFTER_FRAMES,
            "frames": asdict(settings.frames),
            "sampling": asdict(settings.sampling),
        }
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        self.prompt_id = f"caption-{prompt.PROMPT_VERSION}-{digest[:8]}"
        self._asked = asked

    @property
    def tokens(self) -> tuple[int, int]:
        """Prompt and completion tokens spent in this run."""
        return (self._client.prompt_tokens, self._client.completion_tokens) if self._client else (0, 0)

    def expected_tokens(self, num_frames: int, width: int, height: int) -> tuple[int, int]:
        """Prompt and completion tokens of one clip, roughly."""
        words = len(prompt.SYSTEM) + len(prompt.BEFORE_FRAMES) + len(prompt.AFTER_FRAMES)
        pictures = expected_tokens(self.settings.frames, num_frames, width, height)
        return pictures + round(words / _BYTES_A_TOKEN), EXPECTED_REPLY

    def known(self, clip: Path) -> Caption | None:
        """The caption in the journal of a clip that has not changed since; decodes nothing."""
        frames = self._frames.known(clip)
        answer = frames and lookup(self._journal, self._request(frames), read_caption)
        return Caption(answer.value, answer.reply.model, True) if answer else None

    async def check(self) -> None:
        """Connect. Raises UserError where nobody answers, the key or the model is refused."""
        self._chat = self._connect()
        self._client = CachedChatClient(
            self._chat, self._journal, self.settings.concurrency, self.settings.policy
        )
        await self._chat.check(self._request([grey_picture()]))
        # What the id stands for stays readable beside the captions that name it.
        if self._journal.get(f"prompt:{self.prompt_id}") is None:
            self._journal.put(f"prompt:{self.prompt_id}", self._asked)

    async def caption(self, clip: Path) -> Caption:
        """Decode, ask, read. Raises ChatError with the reason that there is no caption."""
        if self._client is None:
            raise RuntimeError("call check() first")
        try:
            frames = await asyncio.to_thread(self._frames.read, clip)
        except Exception as error:  # whatever one damaged clip does, the others are still captioned
            reason = (
                str(error) if isinstance(error, UserError) else f"{clip}: {type(error).__name__}: {error}"
            )
            raise ChatError(reason, "request") from error
        self._frames.remember(clip, frames)
        answer = await self._client.ask(self._request(frames), read_caption)
        return Caption(answer.value, answer.reply.model, answer.from_cache)

    async def close(self) -> None:
        """Let go of connections or weights."""
        if self._chat is not None:
            await self._chat.close()

    def _request(self, frames: list[Jpeg]) -> ChatRequest:
        before = prompt.BEFORE_FRAMES.format(count=len(frames))
        return ChatRequest(
            model=self.model,
            system=prompt.SYSTEM,
            parts=(before, *frames, prompt.AFTER_FRAMES),
            sampling=self.settings.sampling,
            version=f"caption-{prompt.PROMPT_VERSION}",
        )


def endpoint_captioner(
    journal: Journal, settings: CaptionSettings, base_url: str | None = None, model: str | None = None
) -> ChatCaptioner:
    """By an OpenAI-compatible endpoint; what is not given comes from RVEDIT_CAPTION_BASE_URL and _MODEL."""

    def connect() -> Chat:
        return EndpointChat(Endpoint.from_environment(PREFIX, base_url, settings.timeout))

    return ChatCaptioner(model or os.environ.get(f"{PREFIX}_MODEL") or HUB_ID, connect, journal, settings)


def local_captioner(
    journal: Journal, settings: CaptionSettings, model: str, device: str | None = None
) -> ChatCaptioner:
    """By transformers; `model` is a folder or a hub id, loaded only when there is something to ask."""
    from rvedit.io.chat.local import LocalChat, local_name

    return ChatCaptioner(local_name(model), lambda: LocalChat(model, device), journal, settings)

"""Qwen3-VL, the paper's captioner (section 5), behind an endpoint or on this machine."""

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
from rvedit.datasets.captioners.reading import read_caption
from rvedit.io.chat import (
    Answer,
    CachedChatClient,
    Chat,
    ChatError,
    ChatRequest,
    Endpoint,
    EndpointChat,
    FrameReader,
    FrameSettings,
    Journal,
    Jpeg,
    RetryPolicy,
    Sampling,
    gray_image,
    lookup,
)
from rvedit.io.chat.frames import expected_tokens
from rvedit.io.errors import UserError, reason_of

HUB_ID = "Qwen/Qwen3-VL-8B-Instruct"
PREFIX = "RVEDIT_CAPTION"
# Temperature and top_p as the model's authors recommend; six sentences are about 200 tokens.
SAMPLING = Sampling(max_tokens=512, temperature=0.7, top_p=0.8, seed=0)
EXPECTED_REPLY = 180
"""Estimated tokens of a caption."""
_CHARACTERS_PER_TOKEN = 4.5


@dataclass(frozen=True)
class CaptionSettings:
    """Frames, sampling and request settings; `timeout` is in seconds per request."""

    frames: FrameSettings = field(default_factory=FrameSettings)
    sampling: Sampling = SAMPLING
    concurrency: int = 16
    timeout: float = 120.0
    policy: RetryPolicy = field(default_factory=RetryPolicy)


class ChatCaptioner:
    """Captioner that queries a chat model and caches its replies.

    Args:
        model: name to request; captions record the name that the reply states.
        connect: creates the chat client; called once, by `check`, only if there are clips to caption.
        journal: cache of replies and of the clips' frames.
        settings: frames, sampling and requests.
    """

    def __init__(
        self, model: str, connect: Callable[[], Chat], journal: Journal, settings: CaptionSettings
    ) -> None:
        self.model = model
        self.settings = settings
        self._connect = connect
        self._journal = journal
        self._frames = FrameReader(settings.frames, journal)
        self._chat: Chat | None = None
        self._client: CachedChatClient | None = None
        self._request_settings: dict[str, Any] = {
            "model": model,
            "system": prompt.SYSTEM,
            "before_frames": prompt.BEFORE_FRAMES,
            "after_frames": prompt.AFTER_FRAMES,
            "frames": asdict(settings.frames),
            "sampling": asdict(settings.sampling),
        }
        serialized = json.dumps(self._request_settings, sort_keys=True)
        digest = hashlib.sha256(serialized.encode()).hexdigest()
        self.prompt_id = f"caption-{prompt.PROMPT_VERSION}-{digest[:8]}"
        """Hash of the prompt, frame settings, model and sampling: equal ids send equal requests."""

    @property
    def tokens(self) -> tuple[int, int]:
        """Return the prompt and completion tokens used in this run."""
        return (self._client.prompt_tokens, self._client.completion_tokens) if self._client else (0, 0)

    def expected_tokens(self, num_frames: int, width: int, height: int) -> tuple[int, int]:
        """Estimate the prompt and completion tokens of one clip."""
        num_characters = len(prompt.SYSTEM) + len(prompt.BEFORE_FRAMES) + len(prompt.AFTER_FRAMES)
        frame_tokens = expected_tokens(self.settings.frames, num_frames, width, height)
        return frame_tokens + round(num_characters / _CHARACTERS_PER_TOKEN), EXPECTED_REPLY

    def cached(self, clip: Path) -> Answer[str] | None:
        """Return the journal's caption of an unchanged clip, without decoding it, or None."""
        frames = self._frames.cached(clip)
        return lookup(self._journal, self._request(frames), read_caption) if frames else None

    async def check(self) -> None:
        """Connect; raises UserError if the model cannot be reached, or the key or model name is refused."""
        self._chat = self._connect()
        self._client = CachedChatClient(
            self._chat, self._journal, self.settings.concurrency, self.settings.policy
        )
        await self._chat.check(self._request([gray_image()]))
        # Record what the prompt id stands for.
        if self._journal.get(f"prompt:{self.prompt_id}") is None:
            self._journal.put(f"prompt:{self.prompt_id}", self._request_settings)

    async def caption(self, clip: Path) -> Answer[str]:
        """Decode, request and parse a caption; raises ChatError with the reason if that fails."""
        if self._client is None:
            raise RuntimeError("call check() first")
        try:
            frames = await asyncio.to_thread(self._frames.read, clip)
        except Exception as error:  # one damaged clip must not stop the others
            reason = str(error) if isinstance(error, UserError) else f"{clip}: {reason_of(error)}"
            raise ChatError(reason, "request") from error
        self._frames.store(clip, frames)
        return await self._client.ask(self._request(frames), read_caption)

    async def close(self) -> None:
        """Release connections or weights."""
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
    """Return a captioner behind an endpoint (OpenAI API); defaults: RVEDIT_CAPTION_BASE_URL and _MODEL."""

    def connect() -> Chat:
        return EndpointChat(Endpoint.from_environment(PREFIX, base_url, settings.timeout))

    return ChatCaptioner(model or os.environ.get(f"{PREFIX}_MODEL") or HUB_ID, connect, journal, settings)


def local_captioner(
    journal: Journal, settings: CaptionSettings, model: str, device: str | None = None
) -> ChatCaptioner:
    """Return a captioner that runs a folder or Hub id locally; weights are loaded by `check`."""
    from rvedit.io.chat.local import LocalChat, local_name

    return ChatCaptioner(local_name(model), lambda: LocalChat(model, device), journal, settings)

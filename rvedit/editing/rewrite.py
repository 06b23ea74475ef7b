"""Let a chat model make an instruction precise, or split it into steps. The user decides what is run."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rvedit.io.chat import (
    BadReplyError,
    Chat,
    ChatError,
    ChatReply,
    ChatRequest,
    Endpoint,
    EndpointChat,
    FrameSettings,
    Jpeg,
    RetryPolicy,
    Sampling,
    answer_text,
    check_not_withheld,
    is_cut_off,
    plain_text,
    take_frames,
)
from rvedit.io.chat.retries import with_retries
from rvedit.io.errors import UserError
from rvedit.io.video import VideoReader

PREFIX = "RVEDIT_REWRITE"
HUB_ID = "Qwen/Qwen3-VL-8B-Instruct"
MAX_STEPS = 4
NO_SERVER = (
    f"no chat model is set: give `rewrite_with` or {PREFIX}_BASE_URL, such as http://127.0.0.1:8000/v1, or "
    "the folder of a local Qwen-VL"
)
_VERSION = "rewrite-1"
_SYSTEM = (
    "You prepare instructions for a video editing model. You see frames of one clip and what a user asks "
    "for. Write the instruction again so that it cannot be misunderstood: name what is to change as it "
    "appears in the clip (kind, color, place), and what it is to become. Keep to what the user asks for, and "
    "add no other change. If it asks for several separate changes, write one instruction for each, at most "
    f"{MAX_STEPS}, in the order to apply them. Each is one imperative sentence in English of at most 30 "
    "words. Answer with the instructions alone, one per line, without numbers, bullets or quotation marks."
)
_FRAMES = FrameSettings(count=3, long_side=448)
_SAMPLING = Sampling(max_tokens=400, temperature=0.2, seed=0)
_POLICY = RetryPolicy(tries=3, total=60.0)
_LABEL = re.compile(r"^(?:[-*•]\s+|\(?\d+[.):]\s*|(?:step|instruction)\s*\d*\s*:\s*)+", re.IGNORECASE)
_REFUSAL = re.compile(r"^\W*(?:(?:i['’]m|i am) sorry|sorry|i (?:can(?:no|['’])t|am unable))\b", re.IGNORECASE)
_MAX_LENGTH = 400


@dataclass(frozen=True)
class Rewriter:
    """A chat model that rewrites: an OpenAI-compatible server (a URL), or a local Qwen-VL (folder or id)."""

    address: str
    model: str | None = None
    """Its name at the server. By default RVEDIT_REWRITE_MODEL, or Qwen3-VL-8B."""
    device: str | None = None
    """Of a local model."""

    @classmethod
    def find(
        cls, address: str | None = None, model: str | None = None, device: str | None = None
    ) -> Rewriter | None:
        """Return the rewriter at an address, by default RVEDIT_REWRITE_BASE_URL; None if there is none."""
        address = address or os.environ.get(f"{PREFIX}_BASE_URL")
        return cls(address, model, device) if address else None

    def rewrite(self, instruction: str, clip: Path | None = None) -> list[str]:
        """Return the precise instruction, or one for each step, at most four.

        The model sees three frames of the clip, unless it takes no pictures. Raises UserError if it cannot be
        reached, or says nothing that can be used.
        """
        frames: Sequence[Jpeg] = ()
        if clip is not None:
            with VideoReader(clip) as reader:
                frames = take_frames(reader, _FRAMES)
        try:
            return asyncio.run(self._ask(instruction, frames))
        except (ChatError, BadReplyError) as error:
            raise UserError(f"{self.address}: no rewritten instruction: {error}: edit it yourself") from None

    async def _ask(self, instruction: str, frames: Sequence[Jpeg]) -> list[str]:
        chat, model = self._connect()
        try:
            request = ChatRequest(model, _SYSTEM, (*frames, instruction), _SAMPLING, _VERSION)
            try:
                reply, _ = await with_retries(_POLICY, partial(chat.complete, request))
            except ChatError as error:
                if error.scope != "request" or not frames:
                    raise
                request = ChatRequest(
                    model, _SYSTEM, (instruction,), _SAMPLING, _VERSION
                )  # it takes no pictures
                reply, _ = await with_retries(_POLICY, partial(chat.complete, request))
            return read_instructions(reply)
        finally:
            await chat.close()

    def _connect(self) -> tuple[Chat, str]:
        if self.address.startswith(("http://", "https://")):
            model = self.model or os.environ.get(f"{PREFIX}_MODEL") or HUB_ID
            return EndpointChat(Endpoint.from_environment(PREFIX, self.address)), model
        from rvedit.io.chat.local import LocalChat, local_name

        return LocalChat(self.address, self.device), local_name(self.address)


def read_instructions(reply: ChatReply) -> list[str]:
    """Return the instructions of a reply, one per line. Raises BadReplyError for a reply without any."""
    check_not_withheld(reply)
    if is_cut_off(reply):
        raise BadReplyError("the reply was cut off at the token limit")
    lines = [_bare(line) for line in plain_text(answer_text(reply)).splitlines()]
    lines = [line for line in lines if line]
    if not lines or _REFUSAL.match(lines[0]):
        raise BadReplyError(f"the model refuses: {lines[0][:80]}" if lines else "the reply is empty")
    if len(lines) > MAX_STEPS or any(len(line) > _MAX_LENGTH for line in lines):
        raise BadReplyError("the reply is no list of short instructions")
    return lines


def _bare(line: str) -> str:
    """Return a line without bullets, numbers, markup and quotation marks around it."""
    text = _LABEL.sub("", line.strip()).strip("*`_ ")
    return text[1:-1].strip() if len(text) > 1 and text[0] + text[-1] in ('""', "''", "“”") else text

"""Multimodal models as judges, by the paper's protocol: Qwen and Gemini behind one interface."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

from rvedit.evaluation.protocols import JudgeProtocol, Media
from rvedit.evaluation.request import CLOSING, FORMAT_TRIES, FRAMES, JudgeSettings, judge_request
from rvedit.evaluation.scores import Scores, read_reasoning, read_scores
from rvedit.evaluation.verdict import Verdict
from rvedit.io.bench import BenchItem
from rvedit.io.chat import (
    Answer,
    CachedChatClient,
    Chat,
    ChatError,
    ChatReply,
    ChatRequest,
    Endpoint,
    EndpointChat,
    Journal,
    RetryPolicy,
    Sampling,
    UnreadableError,
    grey_picture,
    lookup,
)
from rvedit.io.errors import reason_of

QWEN = "Qwen/Qwen3.5-35B-A3B"
"""The paper's "Qwen3.5-VL-35B"; no hub id of that very name is documented."""
GEMINI = "gemini-3.1-pro-preview"
QWEN_PREFIX, GEMINI_PREFIX = "RVEDIT_QWEN", "RVEDIT_GEMINI"
# A short answer without hidden thoughts; the seed makes a server's reply repeatable where it takes one.
QWEN_SAMPLING = Sampling(max_tokens=1024, seed=0, extra={"chat_template_kwargs": {"enable_thinking": False}})
# The vendor advises against another temperature than its own, and hidden reasoning spends output tokens.
GEMINI_SAMPLING = Sampling(max_tokens=8192)
PAPER = "paper"
EXPECTED_REPLY = 80
_BYTES_A_TOKEN = 4.5


@dataclass(frozen=True)
class Case:
    """An item, and the edit that is to be judged; its category has a rubric."""

    item: BenchItem
    category: str
    """As the protocol names it."""
    edited: Path
    repeat: int = 0

    def shown(self, probe: str) -> tuple[Path, Path]:
        """The clips that stand as source and as edit before the judge."""
        source, edited = self.item.source, self.edited
        return {"identity": (source, source), "swap": (edited, source)}.get(probe, (source, edited))


class Judge(Protocol):
    """Scores edits."""

    name: str
    concurrency: int

    @property
    def tokens(self) -> tuple[int, int]:
        """Prompt and completion tokens spent in this run."""

    def known(self, case: Case) -> Verdict | None:
        """The verdict of an earlier run on clips that have not changed since."""

    def expected_tokens(self, case: Case, width: int, height: int) -> tuple[int, int]:
        """Prompt and completion tokens of a verdict, roughly."""

    async def check(self) -> None:
        """Raise UserError, before any work is spent, where nobody would answer."""

    async def score(self, case: Case) -> Verdict:
        """Scores, or the reason for being dropped. Raises ChatError of scope "all" where no case can be."""

    async def close(self) -> None:
        """Let go of connections or weights."""


class ChatJudge:
    """A multimodal model that is asked by the paper's protocol.

    Args:
        name: qwen or gemini, as it stands in tables.
        model: what is asked for.
        connect: makes the model's side; called once, by `check`.
        journal: remembers replies, and which frames belong to which clip.
        protocol: what it is shown and told.
        settings: sampling, probe, the rubric's place.
        picture_tokens: of a picture of some width and height in pixels.
        retry_dropped: ask anew about items whose replies could not be read in an earlier run.
    """

    def __init__(
        self,
        name: str,
        model: str,
        connect: Callable[[], Chat],
        journal: Journal,
        protocol: JudgeProtocol,
        settings: JudgeSettings,
        picture_tokens: Callable[[int, int], int],
        concurrency: int = 16,
        policy: RetryPolicy | None = None,
        retry_dropped: bool = False,
    ) -> None:
        self.name, self.model, self.concurrency = name, model, concurrency
        self._connect, self._journal, self._protocol, self._settings = connect, journal, protocol, settings
        self._picture_tokens, self._policy = picture_tokens, policy
        self._retry_dropped = retry_dropped
        self._chat: Chat | None = None
        self._client: CachedChatClient | None = None

    @property
    def tokens(self) -> tuple[int, int]:
        """See `Judge`."""
        return (self._client.prompt_tokens, self._client.completion_tokens) if self._client else (0, 0)

    def known(self, case: Case) -> Verdict | None:
        """See `Judge`."""
        source, edited = (self._protocol.known(clip) for clip in case.shown(self._settings.probe))
        if source is None or edited is None:
            return None
        request = self._request(case, source, edited)
        answer = lookup(self._journal, request, self._scores)
        if answer:
            return self._verdict(case, request, answer)
        failure = None if self._retry_dropped else self._journal.get(f"dropped:{request.key}")
        if failure is None:
            return None
        reply = ChatReply(**failure["reply"])
        return self._on_record(case, request, failure["reason"], reply, from_cache=True)

    def expected_tokens(self, case: Case, width: int, height: int) -> tuple[int, int]:
        """See `Judge`."""
        scale = min(1.0, FRAMES.long_side / max(width, height, 1))
        picture = self._picture_tokens(round(width * scale), round(height * scale))
        request = self._request(case, [], [])
        words = len(request.system or "") + sum(len(part) for part in request.parts if isinstance(part, str))
        return round(words / _BYTES_A_TOKEN) + self._protocol.pictures * picture, EXPECTED_REPLY

    async def check(self) -> None:
        """See `Judge`."""
        self._protocol.frames.open()
        self._chat = self._connect()
        self._client = CachedChatClient(
            self._chat, self._journal, self.concurrency, self._policy, FORMAT_TRIES
        )
        rubric = self._protocol.rubric(self._protocol.categories[0])
        await self._chat.check(
            judge_request(self.model, rubric, "none", (grey_picture(), CLOSING), self._settings)
        )

    async def score(self, case: Case) -> Verdict:
        """See `Judge`."""
        assert self._client is not None, "call check() first"
        try:
            source, edited = await asyncio.gather(
                *(asyncio.to_thread(self._protocol.read, clip) for clip in case.shown(self._settings.probe))
            )
        except Exception as error:  # whatever one clip does, the others are still judged
            return self._dropped(case, reason_of(error))
        request = self._request(case, source, edited)
        try:
            answer = await self._client.ask(request, self._scores)
        except UnreadableError as error:
            # The protocol gives an item three tries, not three a run: it stays dropped.
            record = {"reason": str(error), "reply": asdict(error.reply)}
            self._journal.put(f"dropped:{request.key}", record)
            return self._on_record(case, request, str(error), error.reply)
        except ChatError as error:
            if error.scope == "all":
                raise
            return replace(
                self._dropped(case, str(error)),
                asked_model=self.model,
                request=request.key,
            )
        return self._verdict(case, request, answer)

    async def close(self) -> None:
        """See `Judge`."""
        self._protocol.frames.close()
        if self._chat is not None:
            await self._chat.close()

    def _request(self, case: Case, source: Media, edited: Media) -> ChatRequest:
        rubric, parts = self._protocol.rubric(case.category), self._protocol.parts(source, edited)
        return judge_request(self.model, rubric, case.item.instruction, parts, self._settings, case.repeat)

    def _scores(self, reply: ChatReply) -> Scores:
        return read_scores(reply.text, self._protocol.low, self._protocol.high)

    def _dropped(self, case: Case, reason: str | None) -> Verdict:
        return dropped(case, self.name, self._settings.probe, reason, self._protocol.name)

    def _verdict(self, case: Case, request: ChatRequest, answer: Answer[Scores]) -> Verdict:
        return replace(
            self._on_record(case, request, None, answer.reply, answer.from_cache),
            scores=answer.value,
            reasoning=read_reasoning(answer.reply.text),
            transport_retries=answer.transport_retries,
            format_retries=answer.format_retries,
        )

    def _on_record(
        self,
        case: Case,
        request: ChatRequest,
        reason: str | None,
        reply: ChatReply,
        from_cache: bool = False,
    ) -> Verdict:
        """A reply, and what was asked, without scores."""
        source, edited = (self._protocol.frames.digests(clip) for clip in case.shown(self._settings.probe))
        return replace(
            self._dropped(case, reason),
            reply=reply.text,
            model=reply.model,
            asked_model=self.model,
            response_id=reply.response_id,
            finish_reason=reply.finish_reason,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            format_retries=FORMAT_TRIES - 1,
            from_cache=from_cache,
            request=request.key,
            source_frames=source,
            edited_frames=edited,
            note=self._lengths(case) if self._settings.probe == "none" else "",
        )

    def _lengths(self, case: Case) -> str:
        """Editors that work at a length of their own are judged all the same, and it is said."""
        source, edited = (self._protocol.frames.length(clip) for clip in (case.item.source, case.edited))
        return f"the edit has {edited} frames, the source {source}" if source != edited else ""


def dropped(case: Case, judge: str, probe: str, reason: str | None, protocol: str = PAPER) -> Verdict:
    """A verdict without scores."""
    return Verdict(
        item=case.item.id,
        category=case.category,
        instruction=case.item.instruction,
        judge=judge,
        protocol=protocol,
        probe=probe,
        repeat=case.repeat,
        source=os.fspath(case.item.source),
        edited=os.fspath(case.item.source if probe == "identity" else case.edited),
        dropped=reason,
    )


def qwen_judge(
    journal: Journal,
    protocol: JudgeProtocol,
    settings: JudgeSettings | None = None,
    *,
    base_url: str | None = None,
    model: str | None = None,
    local: str | None = None,
    device: str | None = None,
    concurrency: int = 16,
    timeout: float = 120.0,
    retry_dropped: bool = False,
) -> ChatJudge:
    """Qwen by an OpenAI-compatible endpoint (RVEDIT_QWEN_BASE_URL, _MODEL, _API_KEY) or from weights."""
    settings = settings or JudgeSettings(QWEN_SAMPLING)

    def connect() -> Chat:
        if local:
            from rvedit.io.chat.local import LocalChat

            return LocalChat(local, device)
        return EndpointChat(Endpoint.from_environment(QWEN_PREFIX, base_url, timeout))

    if local:
        from rvedit.io.chat.local import local_name

        model = local_name(local)
    name = model or os.environ.get(f"{QWEN_PREFIX}_MODEL") or QWEN

    def tokens(width: int, height: int) -> int:
        return max(1, round(width / 32)) * max(1, round(height / 32))

    return ChatJudge(
        "qwen", name, connect, journal, protocol, settings, tokens, concurrency, retry_dropped=retry_dropped
    )


def gemini_judge(
    journal: Journal,
    protocol: JudgeProtocol,
    settings: JudgeSettings | None = None,
    *,
    base_url: str | None = None,
    model: str | None = None,
    concurrency: int = 16,
    timeout: float = 300.0,
    retry_dropped: bool = False,
) -> ChatJudge:
    """Gemini by Google's client; the key comes from GEMINI_API_KEY or GOOGLE_API_KEY."""
    from rvedit.io.chat.gemini import PICTURE_TOKENS, GeminiChat

    settings = settings or JudgeSettings(GEMINI_SAMPLING)
    name = model or os.environ.get(f"{GEMINI_PREFIX}_MODEL") or GEMINI
    address = base_url or os.environ.get(f"{GEMINI_PREFIX}_BASE_URL")
    return ChatJudge(
        "gemini",
        name,
        lambda: GeminiChat(address, timeout),
        journal,
        protocol,
        settings,
        lambda width, height: PICTURE_TOKENS,
        concurrency,
        retry_dropped=retry_dropped,
    )

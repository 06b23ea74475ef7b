"""The judge interface, and multimodal models as judges: Qwen and Gemini."""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rvedit.evaluation.protocols import JudgeProtocol, Media
from rvedit.evaluation.request import CLOSING, FORMAT_TRIES, FRAMES, JudgeSettings, Probe, judge_request
from rvedit.evaluation.verdict import Verdict
from rvedit.io.bench import BenchItem
from rvedit.io.chat import (
    Answer,
    BadReplyError,
    BatchChat,
    CachedChatClient,
    Chat,
    ChatError,
    ChatReply,
    ChatRequest,
    Endpoint,
    EndpointChat,
    Journal,
    Sampling,
    UnreadableError,
    answer_text,
    check_not_withheld,
    gray_image,
    is_cut_off,
    lookup,
)
from rvedit.io.chat.frames import expected_tokens
from rvedit.io.errors import reason_of

QWEN = "Qwen/Qwen3.5-35B-A3B"
"""The paper's "Qwen3.5-VL-35B", for which no Hub id is documented."""
GEMINI = "gemini-3.1-pro-preview"
QWEN_PREFIX, GEMINI_PREFIX = "RVEDIT_QWEN", "RVEDIT_GEMINI"
# Short replies without a thinking phase; the seed makes replies repeatable on servers that support it.
QWEN_SAMPLING = Sampling(max_tokens=1024, seed=0, extra={"chat_template_kwargs": {"enable_thinking": False}})
# Google advises against changing the temperature. Thinking tokens count as output, hence the higher limit.
GEMINI_SAMPLING = Sampling(max_tokens=8192)
GEMINI_THINKING_TOKENS = 2000
"""Expected for each reply; they count as completion tokens."""
_CHARACTERS_PER_TOKEN = 4.5


@dataclass(frozen=True)
class Case:
    """An item and the edit to judge."""

    item: BenchItem
    category: str
    """The protocol's category, which has a rubric."""
    edited: Path
    repeat: int = 0


class Judge(ABC):
    """A judge that scores edits; unless overridden, it sends no requests.

    Args:
        name: qwen, gemini or reference, as in tables.
        journal: stores results, and the digests of each clip's frames.
        protocol: rubrics and media.
        probe: the test of the judge, if it is one.
        concurrency: maximum number of requests in flight.
    """

    def __init__(
        self, name: str, journal: Journal, protocol: JudgeProtocol, probe: Probe, concurrency: int
    ) -> None:
        self.name, self.protocol, self.probe, self.concurrency = name, protocol, probe, concurrency
        self._journal = journal

    @property
    def tokens(self) -> tuple[int, int]:
        """Prompt and completion tokens used in this run."""
        return 0, 0

    @abstractmethod
    def cached_verdict(self, case: Case) -> Verdict | None:
        """Return the verdict of an earlier run if the clips have not changed, else None."""

    @abstractmethod
    async def score(self, case: Case) -> Verdict:
        """Return scores or the reason for none. Raises ChatError of scope "all" if no case can be scored."""

    def expected_tokens(self, case: Case, width: int, height: int) -> tuple[int, int]:
        """Return roughly the prompt and completion tokens of a verdict on a clip of this size in pixels."""
        return 0, 0

    async def check(self) -> None:
        """Raise UserError if the judge cannot answer; call it before any work is done."""
        self.protocol.frames.open()

    async def close(self) -> None:
        """Release connections or weights."""
        self.protocol.frames.close()

    def clips(self, case: Case) -> tuple[Path, Path]:
        """Return the clips that the judge sees as source and as edit."""
        source, edited = case.item.source, case.edited
        return {"identity": (source, source), "swap": (edited, source)}.get(self.probe, (source, edited))

    def verdict(self, case: Case, **fields: Any) -> Verdict:
        """Return the verdict on a case; `fields` has the scores, or why it is dropped, and other fields."""
        return Verdict(
            item=case.item.id,
            category=case.category,
            instruction=case.item.instruction,
            judge=self.name,
            protocol=self.protocol.name,
            probe=self.probe,
            repeat=case.repeat,
            source=os.fspath(case.item.source),
            edited=os.fspath(case.item.source if self.probe == "identity" else case.edited),
            **fields,
        )

    def shown_frames(self, case: Case) -> dict[str, tuple[str, ...]]:
        """Return the fields of a verdict that have the digests of the frames."""
        source, edited = (self.protocol.frames.digests(clip) for clip in self.clips(case))
        return {"source_frames": source, "edited_frames": edited}


class ChatJudge(Judge):
    """A multimodal chat model as judge.

    Args:
        name, journal, protocol: see `Judge`.
        model: the model's name at the endpoint.
        connect: creates the chat client; called once, by `check`. Its argument returns whether clips are
            being read, of which requests will come.
        settings: sampling, probe, and how to send requests.
        image_tokens: returns the tokens of an image of a width and height in pixels.
        thinking_tokens: expected for each reply.
    """

    def __init__(
        self,
        name: str,
        model: str,
        connect: Callable[[Callable[[], bool]], Chat],
        journal: Journal,
        protocol: JudgeProtocol,
        settings: JudgeSettings,
        image_tokens: Callable[[int, int], int],
        thinking_tokens: int = 0,
    ) -> None:
        super().__init__(name, journal, protocol, settings.probe, settings.concurrency)
        self.model = model
        self._connect, self.settings, self._image_tokens = connect, settings, image_tokens
        self._chat: Chat | None = None
        self._client: CachedChatClient | None = None
        self._thinking_tokens = thinking_tokens
        self._reading = 0

    @property
    def tokens(self) -> tuple[int, int]:
        """See `Judge`."""
        return (self._client.prompt_tokens, self._client.completion_tokens) if self._client else (0, 0)

    @property
    def client(self) -> CachedChatClient:
        """The client, which `check` creates."""
        assert self._client is not None, "call check() first"
        return self._client

    def cached_verdict(self, case: Case) -> Verdict | None:
        """See `Judge`."""
        source, edited = (self.protocol.cached(clip) for clip in self.clips(case))
        picture = self.protocol.reference_image(case.item)
        reference = self.protocol.frames.cached(picture) if picture else []
        if source is None or edited is None or reference is None:
            return None
        request = self._request(case, source, edited, reference)
        if answer := lookup(self._journal, request, partial(self._parse, case)):
            return self._scored(case, request, answer)
        failure = None if self.settings.retry_dropped else self._journal.get(f"dropped:{request.key}")
        if failure is None:
            return None
        reply, reason = ChatReply(**failure["reply"]), failure["reason"]
        return self._replied(
            case, request, reply, dropped=reason, format_retries=FORMAT_TRIES - 1, from_cache=True
        )

    def expected_tokens(self, case: Case, width: int, height: int) -> tuple[int, int]:
        """See `Judge`."""
        request = self._request(case, [], [])
        length = len(request.system or "") + sum(len(part) for part in request.parts if isinstance(part, str))
        frames = self.protocol.num_frames * self._image_tokens(width, height)
        reply = self.protocol.expected_reply_tokens(case.item) + self._thinking_tokens
        return round(length / _CHARACTERS_PER_TOKEN) + frames, reply

    async def check(self) -> None:
        """See `Judge`."""
        await super().check()
        self._chat = self._connect(lambda: self._reading > 0)
        self._client = CachedChatClient(
            self._chat, self._journal, self.concurrency, self.settings.policy, FORMAT_TRIES
        )
        rubric = next(iter(self.protocol.rubrics.values()))
        await self._chat.check(judge_request(self.model, rubric, (gray_image(), CLOSING), self.settings))

    async def score(self, case: Case) -> Verdict:
        """See `Judge`."""
        self._reading += 1
        try:
            source, edited = await asyncio.gather(
                *(asyncio.to_thread(self.protocol.read, clip) for clip in self.clips(case))
            )
            picture = self.protocol.reference_image(case.item)
            reference = await asyncio.to_thread(self.protocol.frames.read, picture) if picture else []
        except Exception as error:  # a clip that fails must not stop the others
            return self.verdict(case, dropped=reason_of(error))
        finally:
            self._reading -= 1
        request = self._request(case, source, edited, reference)
        try:
            answer = await self.client.ask(request, partial(self._parse, case))
        except UnreadableError as error:
            # The protocol allows three tries for an item in all, not in each run: it stays dropped.
            failure = {"reason": str(error), "reply": asdict(error.reply)}
            self._journal.put(f"dropped:{request.key}", failure)
            return self._replied(
                case, request, error.reply, dropped=str(error), format_retries=FORMAT_TRIES - 1
            )
        except ChatError as error:
            if error.scope == "all":
                raise
            return self.verdict(case, dropped=str(error), asked_model=self.model, request=request.key)
        return self._scored(case, request, answer)

    async def close(self) -> None:
        """See `Judge`."""
        await super().close()
        if self._chat is not None:
            await self._chat.close()

    def _request(self, case: Case, source: Media, edited: Media, reference: Media = ()) -> ChatRequest:
        rubric = self.protocol.rubric_of(case.item, case.category)
        parts = self.protocol.parts(source, edited, reference)
        return judge_request(self.model, rubric, parts, self.settings, case.repeat)

    def _parse(self, case: Case, reply: ChatReply) -> dict[str, Any]:
        text = whole_text(reply)
        try:
            return self.protocol.parse(text, case.item, case.category)
        except BadReplyError as error:
            where = "" if reply.text.strip() else " in reasoning_content, and the reply is empty"
            raise BadReplyError(f"{error}{where}") from None

    def _scored(self, case: Case, request: ChatRequest, answer: Answer[dict[str, Any]]) -> Verdict:
        return self._replied(
            case,
            request,
            answer.reply,
            transport_retries=answer.transport_retries,
            format_retries=answer.format_retries,
            from_cache=answer.from_cache,
            **answer.value,
        )

    def _replied(self, case: Case, request: ChatRequest, reply: ChatReply, **fields: Any) -> Verdict:
        """Return a verdict that has the request and the reply."""
        values = asdict(reply)
        return self.verdict(
            case,
            reply=values.pop("text"),
            asked_model=self.model,
            request=request.key,
            note=self._length_note(case) if self.probe == "none" else "",
            **values,
            **self.shown_frames(case),
            **fields,
        )

    def _length_note(self, case: Case) -> str:
        """Return a note if edit and source differ in length; such an edit is judged all the same."""
        source, edited = (self.protocol.frames.length(clip) for clip in (case.item.source, case.edited))
        return f"the edit has {edited} frames, the source {source}" if source != edited else ""


def qwen_judge(
    journal: Journal,
    protocol: JudgeProtocol,
    settings: JudgeSettings,
    *,
    base_url: str | None = None,
    model: str | None = None,
    local: str | None = None,
    device: str | None = None,
) -> ChatJudge:
    """Return Qwen as judge, on an OpenAI-compatible endpoint or, with `local`, from weights on this machine.

    Without `base_url` and `model`, RVEDIT_QWEN_BASE_URL and RVEDIT_QWEN_MODEL are used; the key comes from
    RVEDIT_QWEN_API_KEY.
    """

    def connect(is_reading: Callable[[], bool]) -> Chat:
        if local:
            return LocalChat(local, device)
        endpoint = Endpoint.from_environment(QWEN_PREFIX, base_url, settings.timeout)
        if settings.batch_api:
            from rvedit.io.chat.endpoint_batches import EndpointBatches

            return BatchChat(EndpointBatches(endpoint), journal, settings.retry_dropped, is_reading)
        return EndpointChat(endpoint)

    if local:
        from rvedit.io.chat.local import LocalChat, local_name

        model = local_name(local)
    model = model or os.environ.get(f"{QWEN_PREFIX}_MODEL") or QWEN
    image_tokens = partial(expected_tokens, FRAMES, 1)
    return ChatJudge("qwen", model, connect, journal, protocol, settings, image_tokens)


def gemini_judge(
    journal: Journal,
    protocol: JudgeProtocol,
    settings: JudgeSettings,
    *,
    base_url: str | None = None,
    model: str | None = None,
) -> ChatJudge:
    """Return Gemini as judge, through Google's client; the key is in GEMINI_API_KEY or GOOGLE_API_KEY."""
    from rvedit.io.chat.gemini import IMAGE_TOKENS, GeminiChat

    model = model or os.environ.get(f"{GEMINI_PREFIX}_MODEL") or GEMINI
    url = base_url or os.environ.get(f"{GEMINI_PREFIX}_BASE_URL")

    def connect(is_reading: Callable[[], bool]) -> Chat:
        if settings.batch_api:
            from rvedit.io.chat.gemini_batches import GeminiBatches

            backend = GeminiBatches(url, settings.timeout)
            return BatchChat(backend, journal, settings.retry_dropped, is_reading)
        return GeminiChat(url, settings.timeout)

    return ChatJudge(
        "gemini",
        model,
        connect,
        journal,
        protocol,
        settings,
        lambda width, height: IMAGE_TOKENS,
        GEMINI_THINKING_TOKENS,
    )


def whole_text(reply: ChatReply) -> str:
    """Return the text of a reply. Raises BadReplyError if it is empty, withheld or cut off."""
    check_not_withheld(reply)
    if is_cut_off(reply):
        raise BadReplyError("cut off by the token limit: raise --max-tokens")
    return answer_text(reply)

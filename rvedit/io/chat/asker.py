"""Many questions in flight; each answered once, remembered, and asked again where the reply is no answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

from rvedit.io.chat.journal import Journal
from rvedit.io.chat.messages import (
    BadReplyError,
    Chat,
    ChatError,
    ChatReply,
    ChatRequest,
    UnreadableError,
)
from rvedit.io.chat.retries import RetryPolicy, with_retries

T = TypeVar("T")


@dataclass(frozen=True)
class Answer(Generic[T]):
    """What was read from a reply, the reply itself, and how it was come by."""

    value: T
    reply: ChatReply
    from_cache: bool
    transport_retries: int = 0
    """Tries that got no reply: refused, timed out, broken off."""
    format_retries: int = 0
    """Replies that could not be read, before this one."""


def lookup(journal: Journal, request: ChatRequest, read: Callable[[ChatReply], T]) -> Answer[T] | None:
    """The answer that the journal holds; None where there is none that can be read."""
    value = journal.get(f"reply:{request.key}")
    if value is None:
        return None
    reply = ChatReply(**value["reply"])
    try:
        retries = (value.get("transport_retries", 0), value.get("format_retries", 0))
        return Answer(read(reply), reply, True, *retries)
    except BadReplyError:
        return None


class CachedChatClient:
    """Asks a model, never more than `concurrency` requests at a time, and never the same thing twice.

    Args:
        chat: the model's side.
        journal: answers by their requests' keys; only replies that could be read are kept.
        concurrency: requests in flight at most; one that waits to be tried again counts.
        policy: how often a request that gets no reply is tried.
        format_tries: how often one is asked whose reply cannot be read. Each asks with another seed.
    """

    def __init__(
        self,
        chat: Chat,
        journal: Journal,
        concurrency: int = 16,
        policy: RetryPolicy | None = None,
        format_tries: int = 3,
    ) -> None:
        self.prompt_tokens = 0
        self.completion_tokens = 0
        """Spent since this asker was made; replies that could not be read are among them."""
        self._chat = chat
        self._journal = journal
        self._slots = asyncio.Semaphore(concurrency)
        self._policy = policy or RetryPolicy()
        self._format_tries = format_tries
        # A server that has gone away is not called for every row of a long list, each for minutes.
        self._give_up = max(8, concurrency)
        self._silent = 0
        self._stopped: ChatError | None = None
        self._asking: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def ask(self, request: ChatRequest, read: Callable[[ChatReply], T]) -> Answer[T]:
        """The answer, from the journal or the model. Raises ChatError with the reason there is none.

        Once that error's scope is "all", every further question that needs the model raises it too.
        `read` gets a reply and raises BadReplyError where it does not hold what was asked for.
        """
        # Two rows may ask the same at once: the second waits, and finds the answer in the journal.
        async with self._asking.setdefault(request.key, asyncio.Lock()):
            return lookup(self._journal, request, read) or await self._ask(request, read)

    async def _ask(self, request: ChatRequest, read: Callable[[ChatReply], T]) -> Answer[T]:
        retries, reason = 0, ""
        for number in range(self._format_tries):
            varied = _with_seed(request, number)
            async with self._slots:
                reply, failed = await self._reply(varied)
            retries += failed
            self.prompt_tokens += reply.prompt_tokens
            self.completion_tokens += reply.completion_tokens
            try:
                answer = Answer(read(reply), reply, False, retries, number)
            except BadReplyError as error:
                reason = str(error)
                continue
            record = {"reply": asdict(reply), "transport_retries": retries, "format_retries": number}
            self._journal.put(f"reply:{request.key}", record)
            return answer
        raise UnreadableError(f"{reason} (asked {self._format_tries} times)", reply)

    async def _reply(self, request: ChatRequest) -> tuple[ChatReply, int]:
        if self._stopped:
            raise self._stopped
        try:
            result = await with_retries(self._policy, partial(self._chat.complete, request))
        except ChatError as error:
            self._silent += error.scope == "again"
            if error.scope == "all":
                self._stopped = error
            elif self._silent >= self._give_up:
                self._stopped = ChatError(f"{self._silent} requests in a row got no reply: {error}", "all")
            raise self._stopped or error from None
        self._silent = 0
        return result


def _with_seed(request: ChatRequest, number: int) -> ChatRequest:
    """The request as it is asked the n-th time: a seeded one would get the same reply again."""
    sampling = request.sampling
    if number == 0 or sampling.seed is None:
        return request
    return replace(request, sampling=replace(sampling, seed=sampling.seed + number))

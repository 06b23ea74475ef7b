"""A chat client that limits concurrency, caches replies, and asks again if a reply cannot be parsed."""

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
    """A parsed reply."""

    value: T
    reply: ChatReply
    from_cache: bool
    transport_retries: int = 0
    """Failed attempts without a reply: refused, timed out or disconnected."""
    format_retries: int = 0
    """Replies before this one that could not be parsed."""


def lookup(journal: Journal, request: ChatRequest, parse: Callable[[ChatReply], T]) -> Answer[T] | None:
    """Return the answer in the journal, or None if there is none that can be parsed."""
    value = journal.get(f"reply:{request.key}")
    if value is None:
        return None
    reply = ChatReply(**value["reply"])
    try:
        retries = (value.get("transport_retries", 0), value.get("format_retries", 0))
        return Answer(parse(reply), reply, True, *retries)
    except BadReplyError:
        return None


class CachedChatClient:
    """A client with limited concurrency that does not send an answered request again.

    Args:
        chat: the model.
        journal: stores replies under the keys of their requests; only replies that could be parsed.
        concurrency: maximum number of requests in flight, including those that wait for a retry.
        policy: how often a request without a reply is retried.
        format_tries: how often a request is sent whose reply cannot be parsed, each time with another seed.
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
        """Tokens used by this client, including replies that could not be parsed."""
        self._chat = chat
        self._journal = journal
        self._slots = asyncio.Semaphore(concurrency)
        self._policy = policy or RetryPolicy()
        self._format_tries = format_tries
        # Stop if the server is down, instead of retrying each row of a long list for minutes.
        self._max_failures = max(8, concurrency)
        self._failures_in_a_row = 0
        self._fatal_error: ChatError | None = None
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def ask(self, request: ChatRequest, parse: Callable[[ChatReply], T]) -> Answer[T]:
        """Return the answer, from the journal or the model. Raises ChatError with the reason for a failure.

        After an error of scope "all", every further request that needs the model raises that error too.
        `parse` takes a reply and raises BadReplyError if the reply does not contain what was asked for.
        """
        # If the same request is made twice at a time, the second waits and finds the reply in the journal.
        async with self._locks.setdefault(request.key, asyncio.Lock()):
            return lookup(self._journal, request, parse) or await self._ask(request, parse)

    async def _ask(self, request: ChatRequest, parse: Callable[[ChatReply], T]) -> Answer[T]:
        retries, reason = 0, ""
        for number in range(self._format_tries):
            async with self._slots:
                reply, failed = await self._complete(_with_seed(request, number))
            retries += failed
            self.prompt_tokens += reply.prompt_tokens
            self.completion_tokens += reply.completion_tokens
            try:
                answer = Answer(parse(reply), reply, False, retries, number)
            except BadReplyError as error:
                reason = str(error)
                continue
            record = {"reply": asdict(reply), "transport_retries": retries, "format_retries": number}
            self._journal.put(f"reply:{request.key}", record)
            return answer
        raise UnreadableError(f"{reason} (asked {self._format_tries} times)", reply)

    async def _complete(self, request: ChatRequest) -> tuple[ChatReply, int]:
        """Return the reply and the number of failed attempts."""
        if self._fatal_error:
            raise self._fatal_error
        try:
            result = await with_retries(self._policy, partial(self._chat.complete, request))
        except ChatError as error:
            self._failures_in_a_row += error.scope == "attempt"
            if error.scope == "all":
                self._fatal_error = error
            elif self._failures_in_a_row >= self._max_failures:
                reason = f"{self._failures_in_a_row} requests in a row got no reply: {error}"
                self._fatal_error = ChatError(reason, "all")
            raise self._fatal_error or error from None
        self._failures_in_a_row = 0
        return result


def _with_seed(request: ChatRequest, number: int) -> ChatRequest:
    """Return the request for its n-th try; with the same seed it would get the same reply again."""
    sampling = request.sampling
    if number == 0 or sampling.seed is None:
        return request
    return replace(request, sampling=replace(sampling, seed=sampling.seed + number))

"""Retries with jittered exponential backoff, Retry-After and a time limit."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TypeVar

from rvedit.io.chat.messages import ChatError

T = TypeVar("T")

RETRY_STATUSES = frozenset({408, 409, 425, 429})  # and every 5xx
REASON_LENGTH = 300


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how long a request is retried; all times in seconds.

    The n-th wait is drawn from the upper half of [0, first_wait·2^n], at most `longest_wait`, or is the
    server's Retry-After if that is longer. No wait starts that would end after `total`.
    """

    tries: int = 8
    first_wait: float = 0.5
    longest_wait: float = 30.0
    total: float = 600.0

    def wait(self, number: int, retry_after: float | None) -> float:
        """Return the seconds to wait after attempt `number`, counted from 0."""
        longest = min(self.longest_wait, self.first_wait * 2.0 ** min(number, 60))
        backoff = longest * random.uniform(0.5, 1.0)
        if retry_after is None:
            return backoff
        # Clients that were given the same time should not all retry at the same moment.
        return max(backoff, retry_after + random.uniform(0.0, self.first_wait))


async def with_retries(policy: RetryPolicy, attempt: Callable[[], Awaitable[T]]) -> tuple[T, int]:
    """Return the first result and the number of failed attempts before it. Raises the last ChatError."""
    deadline = time.monotonic() + policy.total
    for number in range(policy.tries):
        try:
            return await attempt(), number
        except ChatError as error:
            if error.scope != "attempt":
                raise
            wait = policy.wait(number, error.retry_after)
            if number + 1 == policy.tries or time.monotonic() + wait > deadline:
                times = "once" if number == 0 else f"{number + 1} times"
                raise ChatError(f"{error} (tried {times})", "attempt", error.retry_after) from None
        await asyncio.sleep(wait)
    raise AssertionError("a policy has at least one try")


def with_address(error: ChatError, address: str) -> ChatError:
    """Return the error, with the model's address in front if no request can succeed."""
    return ChatError(f"{address}: {error}", "all") if error.scope == "all" else error


def safe_reason(reason: str, key: str | None) -> str:
    """Return one short line, with the API key masked in case the server repeats it."""
    if key:
        reason = reason.replace(key, "***")
    return " ".join(reason.split())[:REASON_LENGTH]


def no_json(body: str) -> ChatError:
    """Return the error of a reply that is not JSON; one that is cut off may be whole at the next attempt."""
    if body[:1] in ("", "{"):
        return ChatError("the reply is cut off", "attempt")
    return no_reply(body)


def no_reply(body: str) -> ChatError:
    """Return the error of a successful response with something else than a reply, such as a web page."""
    return ChatError(f"HTTP 200 with no reply of a chat model, but {body[:120]}: check the URL", "all")


def retry_after_seconds(header: str | None) -> float | None:
    """Return the seconds of a Retry-After header, a number or an HTTP date; None if it is neither."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return None
    return max(0.0, seconds) if seconds == seconds else None  # NaN != NaN

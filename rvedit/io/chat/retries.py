"""Trying again: exponential, jittered, as long as the server says, and not for ever."""

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

TRY_AGAIN = frozenset({408, 409, 425, 429})  # and every 5xx
REASON_LENGTH = 300


@dataclass(frozen=True)
class RetryPolicy:
    """How long a request is tried; all times in seconds.

    The n-th wait is drawn from the upper half of [0, first_wait·2^n], at most `longest_wait`; a server's
    Retry-After is obeyed instead where it is longer. A wait that would end after `total` is not begun.
    """

    tries: int = 8
    first_wait: float = 0.5
    longest_wait: float = 30.0
    total: float = 600.0

    def wait(self, number: int, retry_after: float | None) -> float:
        """Seconds to wait after the try with this number, the first being 0."""
        longest = min(self.longest_wait, self.first_wait * 2.0 ** min(number, 60))
        drawn = longest * random.uniform(0.5, 1.0)
        # Whoever was told the same time should not come back at the same moment.
        return (
            drawn if retry_after is None else max(drawn, retry_after + random.uniform(0.0, self.first_wait))
        )


async def with_retries(policy: RetryPolicy, attempt: Callable[[], Awaitable[T]]) -> tuple[T, int]:
    """Try until there is a result; returns it and the number of failed tries. Raises the last ChatError."""
    deadline = time.monotonic() + policy.total
    for number in range(policy.tries):
        try:
            return await attempt(), number
        except ChatError as error:
            if error.scope != "again":
                raise
            wait = policy.wait(number, error.retry_after)
            if number + 1 == policy.tries or time.monotonic() + wait > deadline:
                times = "once" if number == 0 else f"{number + 1} times"
                raise ChatError(f"{error} (tried {times})", "again", error.retry_after) from None
        await asyncio.sleep(wait)
    raise AssertionError("a policy has at least one try")


def safe_reason(reason: str, key: str | None) -> str:
    """One short line; a server that repeats the key does not get it written down."""
    if key:
        reason = reason.replace(key, "***")
    return " ".join(reason.split())[:REASON_LENGTH]


def retry_after_seconds(header: str | None) -> float | None:
    """The seconds that a Retry-After header asks for, by number or HTTP date; None if by neither."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return None
    return max(0.0, seconds) if seconds == seconds else None  # a NaN is no time

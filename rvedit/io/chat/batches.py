"""A chat model through a batch API: requests are collected, sent as one job, and answered within hours.

A job is written to the journal before it is sent, and again with its name afterwards, so a run that is killed
finds its jobs again and sends nothing twice.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Protocol

from rvedit.io.chat.journal import Journal
from rvedit.io.chat.messages import ChatError, ChatReply, ChatRequest

Outcomes = Mapping[str, ChatReply | ChatError]
QUIET = 1.0
"""Seconds without a new request after which the collected ones are sent, if no more are being made."""
LONGEST_POLL = 60.0
"""Seconds between two questions for a job's state; they start at one."""
MAX_REQUESTS = 500
"""Requests of a job, which are all in memory."""
_TROUBLES = 20
"""How often in a row a job's state may be unknown."""


class BatchBackend(Protocol):
    """The batch API of a server."""

    name: str
    """What the jobs of a server are kept under in the journal."""
    max_bytes: int
    """Bytes of media in a job."""

    async def check(self, probe: ChatRequest) -> None:
        """See `Chat`."""

    async def submit(self, token: str, requests: Mapping[str, ChatRequest]) -> str:
        """Send a job of requests by their ids, labeled with `token`; return its name. Raises ChatError."""

    async def find(self, token: str) -> str | None:
        """Return the name of the job with this label, or None if the server has none. Raises ChatError."""

    async def collect(self, job: str) -> Outcomes | None:
        """Return the outcomes by request id, or None while the job runs. Raises ChatError if it failed."""

    async def close(self) -> None:
        """Release connections."""


class BatchChat:
    """A `Chat` that answers through a batch API.

    Replies are stored as they come, also those of requests that nobody asks for any more. The n-th attempt at
    a request has an id of its own, so that a restarted run finds the reply of each attempt.

    Args:
        backend: the server.
        journal: stores jobs and replies.
        asks_again: do not use replies that an earlier run has seen and dropped.
        has_more: returns whether more requests are being made, for which a job waits.
    """

    def __init__(
        self,
        backend: BatchBackend,
        journal: Journal,
        asks_again: bool = False,
        has_more: Callable[[], bool] = lambda: False,
    ) -> None:
        self._backend, self._journal = backend, journal
        self._asks_again, self._has_more = asks_again, has_more
        self._attempts: Counter[str] = Counter()
        self._waiting: dict[str, tuple[ChatRequest, asyncio.Future[ChatReply]]] = {}
        self._last_request = 0.0
        self._worker: asyncio.Task[None] | None = None

    async def check(self, probe: ChatRequest) -> None:
        """See `Chat`; the probe is a single request."""
        await self._backend.check(probe)

    async def complete(self, request: ChatRequest) -> ChatReply:
        """Return the reply to one attempt. Raises ChatError."""
        name = f"{request.key[:48]}-{self._attempts[request.key]}"
        self._attempts[request.key] += 1
        stored = self._journal.get(f"batch-reply:{name}")
        if stored and not (stored["seen"] and self._asks_again):
            return self._seen(name, ChatReply(**stored["reply"]))
        loop = asyncio.get_running_loop()
        future: asyncio.Future[ChatReply] = loop.create_future()
        self._waiting[name] = (request, future)
        self._last_request = loop.time()
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return self._seen(name, await future)

    async def close(self) -> None:
        """See `Chat`; jobs go on, and the next run collects them."""
        if self._worker:
            self._worker.cancel()
        await self._backend.close()

    @property
    def _jobs(self) -> list[dict[str, Any]]:
        """The jobs that are not collected: token, name (None if it may not have arrived) and ids."""
        return list(self._journal.get(f"batches:{self._backend.name}") or [])

    @_jobs.setter
    def _jobs(self, jobs: list[dict[str, Any]]) -> None:
        self._journal.put(f"batches:{self._backend.name}", jobs)

    def _seen(self, name: str, reply: ChatReply) -> ChatReply:
        self._journal.put(f"batch-reply:{name}", {"reply": asdict(reply), "seen": True})
        return reply

    async def _work(self) -> None:
        """Send and collect until nobody waits.

        An error that ends a job is raised to every waiting request.
        """
        try:
            wait, troubles = 1.0, 0
            while self._waiting:
                try:
                    await self._find_lost()
                    if await self._submit() or await self._collect():
                        wait = 1.0
                    troubles = 0
                except ChatError as error:
                    troubles += 1
                    if error.scope != "attempt" or troubles == _TROUBLES:
                        raise ChatError(str(error), "all") from None
                if self._waiting:
                    await asyncio.sleep(min(wait, QUIET if self._unsent() else LONGEST_POLL))
                    wait = min(1.5 * wait, LONGEST_POLL)
        except Exception as error:  # of any kind: else they would wait for ever
            for _, future in self._waiting.values():
                if not future.done():
                    future.set_exception(error)
            self._waiting.clear()

    async def _find_lost(self) -> None:
        """Find the names of jobs whose sending was interrupted; those that never arrived are forgotten."""
        found = []
        for job in self._jobs:
            if name := job["name"] or await self._backend.find(job["token"]):
                found.append({**job, "name": name})
        if found != self._jobs:
            self._jobs = found

    def _unsent(self) -> list[str]:
        sent = {name for job in self._jobs for name in job["ids"]}
        return [name for name in self._waiting if name not in sent]

    async def _submit(self) -> bool:
        """Send the requests that are not in a job, if no more are coming; return whether there were any."""
        names = self._unsent()
        is_quiet = not self._has_more() and asyncio.get_running_loop().time() - self._last_request >= QUIET
        if not names or not (is_quiet or len(names) >= MAX_REQUESTS):
            return False
        requests: dict[str, ChatRequest] = {}
        size = 0
        for name in names[:MAX_REQUESTS]:
            request = self._waiting[name][0]
            size += sum(len(part.data) for part in request.parts if not isinstance(part, str))
            if requests and size > self._backend.max_bytes:
                break
            requests[name] = request
        token = secrets.token_hex(16)
        self._jobs = [*self._jobs, {"token": token, "name": None, "ids": list(requests)}]
        try:
            name = await self._backend.submit(token, requests)
        except ChatError as error:
            if error.scope != "attempt":  # else it may have arrived
                self._forget(token)
            raise
        self._jobs = [{**job, "name": name} if job["token"] == token else job for job in self._jobs]
        return True

    async def _collect(self) -> bool:
        """Store the replies of jobs that have ended, and hand them on; return whether there were any."""
        collected = False
        for job in self._jobs:
            try:
                outcomes = await self._backend.collect(job["name"])
            except ChatError as error:
                if error.scope != "attempt":
                    self._forget(job["token"])
                raise
            if outcomes is None:
                continue
            for name, outcome in outcomes.items():
                if isinstance(outcome, ChatReply):
                    self._journal.put(f"batch-reply:{name}", {"reply": asdict(outcome), "seen": False})
            self._forget(job["token"])
            lost = ChatError("the batch has no answer to the request", "attempt")
            for name in job["ids"]:
                if waiting := self._waiting.pop(name, None):
                    outcome = outcomes.get(name, lost)
                    if isinstance(outcome, ChatReply):
                        waiting[1].set_result(outcome)
                    else:
                        waiting[1].set_exception(outcome)
            collected = True
        return collected

    def _forget(self, token: str) -> None:
        self._jobs = [job for job in self._jobs if job["token"] != token]

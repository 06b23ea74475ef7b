"""The batch API of OpenAI and compatible servers: a file of requests, a job, and a file of replies."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Mapping
from typing import Any, Literal, TypeVar

from rvedit.io.chat.batches import Outcomes
from rvedit.io.chat.endpoint import Endpoint, EndpointChat, read_reply, request_body, status_scope
from rvedit.io.chat.messages import ChatError, ChatReply, ChatRequest
from rvedit.io.errors import UserError

T = TypeVar("T")
_PATH: Literal["/v1/chat/completions"] = "/v1/chat/completions"
_LABEL = "rvedit"
_ENDED = ("completed", "expired", "cancelled")


class EndpointBatches(EndpointChat):
    """Jobs at an endpoint, through the openai client."""

    max_bytes = 60_000_000
    """Of media; base64 makes them a third larger, and OpenAI takes 200 MB."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint)
        self.name = endpoint.public_url

    async def check(self, probe: ChatRequest) -> None:
        """See `EndpointChat`. Raises UserError if the server has no batch API."""
        await super().check(probe)
        try:
            await self._ask(self._client.batches.list(limit=1))
        except ChatError as error:
            if error.scope == "attempt":
                return
            raise UserError(f"{self.name}: has no batch API ({error}): leave out `batch_api`") from None

    async def submit(self, token: str, requests: Mapping[str, ChatRequest]) -> str:
        """See `BatchBackend`."""
        lines = [
            json.dumps({"custom_id": name, "method": "POST", "url": _PATH, "body": self._body_of(request)})
            for name, request in requests.items()
        ]
        data = ("\n".join(lines) + "\n").encode()
        file = await self._ask(self._client.files.create(file=(f"{token}.jsonl", data), purpose="batch"))
        job = await self._ask(
            self._client.batches.create(
                input_file_id=file.id, endpoint=_PATH, completion_window="24h", metadata={_LABEL: token}
            )
        )
        return str(job.id)

    async def find(self, token: str) -> str | None:
        """See `BatchBackend`."""
        page = await self._ask(self._client.batches.list(limit=100))
        while True:
            for job in page.data:
                if (job.metadata or {}).get(_LABEL) == token:
                    return str(job.id)
            if not page.has_next_page():
                return None
            page = await self._ask(page.get_next_page())

    async def collect(self, job: str) -> Outcomes | None:
        """See `BatchBackend`; what an expired or cancelled job has answered counts."""
        state = await self._ask(self._client.batches.retrieve(job))
        if state.status == "failed":
            errors = (state.errors and state.errors.data) or []
            raise ChatError(self._safe(f"the batch failed: {errors[0].message if errors else job}"), "all")
        if state.status not in _ENDED:
            return None
        outcomes: dict[str, ChatReply | ChatError] = {}
        for file in (state.output_file_id, state.error_file_id):
            if file:
                content = await self._ask(self._client.files.content(file))
                try:
                    entries = [json.loads(line) for line in content.text.splitlines() if line.strip()]
                    outcomes |= {entry["custom_id"]: self._outcome(entry) for entry in entries}
                except (ValueError, KeyError, TypeError, AttributeError):
                    raise ChatError(f"the replies of {job} are in no known form", "attempt") from None
        return outcomes

    def _body_of(self, request: ChatRequest) -> dict[str, Any]:
        return self._known_arguments(request_body(request))

    def _outcome(self, entry: dict[str, Any]) -> ChatReply | ChatError:
        response = entry.get("response") or {}
        status, body = int(response.get("status_code") or 0), response.get("body") or {}
        if status == 200:
            try:
                return read_reply(body, str(body.get("model") or ""))
            except ChatError as error:
                return ChatError(self._safe(str(error)), "attempt")
        said = entry.get("error") or body.get("error") or {}
        reason = self._safe(f"HTTP {status}: {said.get('message') or said.get('code') or 'no reply'}")
        return ChatError(reason, status_scope(status) if status else "attempt")

    async def _ask(self, call: Awaitable[T]) -> T:
        """Return what the client returns. Raises ChatError."""
        from openai import APIConnectionError, APIError, APIStatusError

        try:
            return await call
        except APIStatusError as error:
            raise self._refusal(error) from None
        except APIConnectionError as error:
            raise ChatError(f"the connection broke: {self._safe(str(error))}", "attempt") from None
        except APIError as error:
            raise ChatError(self._safe(str(error)), "attempt") from None

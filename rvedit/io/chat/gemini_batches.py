"""The batch API of Gemini: jobs whose requests are inside of them."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any, TypeVar

from rvedit.io.chat.batches import Outcomes
from rvedit.io.chat.gemini import GeminiChat, read_reply
from rvedit.io.chat.messages import ChatError, ChatReply, ChatRequest

T = TypeVar("T")
_ENDED = ("JOB_STATE_SUCCEEDED", "JOB_STATE_PARTIALLY_SUCCEEDED", "JOB_STATE_EXPIRED", "JOB_STATE_CANCELLED")
_ID = "id"


class GeminiBatches(GeminiChat):
    """Jobs at Gemini, through Google's client."""

    max_bytes = 12_000_000
    """Of media; a job may have 20 MB, in base64."""

    def __init__(self, base_url: str | None = None, timeout: float = 300.0) -> None:
        super().__init__(base_url, timeout)
        self.name = self._address

    async def submit(self, token: str, requests: Mapping[str, ChatRequest]) -> str:
        """See `BatchBackend`."""
        model = next(iter(requests.values())).model
        inlined = [
            self._types.InlinedRequest(
                contents=self._contents(request), config=self._batch_config(request), metadata={_ID: name}
            )
            for name, request in requests.items()
        ]
        config = self._types.CreateBatchJobConfig(display_name=token)
        job = await self._ask(self._client.aio.batches.create(model=model, src=inlined, config=config))
        return str(job.name)

    async def find(self, token: str) -> str | None:
        """See `BatchBackend`."""
        jobs = await self._ask(self._client.aio.batches.list())
        async for job in jobs:
            if job.display_name == token:
                return str(job.name)
        return None

    async def collect(self, job: str) -> Outcomes | None:
        """See `BatchBackend`; what an expired or cancelled job has answered counts."""
        state: Any = await self._ask(self._client.aio.batches.get(name=job))
        status = getattr(state.state, "value", state.state)
        if status == "JOB_STATE_FAILED":
            reason = state.error.message if state.error else job
            raise ChatError(self._safe(f"the batch failed: {reason}"), "all")
        if status not in _ENDED:
            return None
        entries = (state.dest and state.dest.inlined_responses) or []
        if not all(entry.metadata for entry in entries):
            raise ChatError(f"the replies of {job} do not name their requests", "attempt")
        return {entry.metadata[_ID]: self._outcome(entry, state.model or "") for entry in entries}

    def _outcome(self, entry: Any, model: str) -> ChatReply | ChatError:
        if entry.response is None:
            return ChatError(self._safe(f"{entry.error.message if entry.error else 'no reply'}"), "attempt")
        try:
            return read_reply(entry.response, model)
        except ChatError as error:
            return ChatError(str(error), "attempt")

    def _batch_config(self, request: ChatRequest) -> Any:
        """Return the settings of a request in a job, which has no HTTP options of its own."""
        if request.sampling.extra:
            raise ChatError("a batch of Gemini takes no extra: leave it out", "all")
        return self._config(request).model_copy(
            update={"http_options": None, "automatic_function_calling": None}
        )

    async def _ask(self, call: Awaitable[T]) -> T:
        """Return what the client returns. Raises ChatError."""
        from google.genai import errors

        try:
            return await call
        except errors.APIError as error:
            raise self._refusal(error) from None
        except Exception as error:
            raise self._transport_error(error) from None

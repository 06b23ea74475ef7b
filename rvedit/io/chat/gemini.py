"""A client of Gemini."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from typing import Any

from rvedit.io.chat.endpoint import public_url
from rvedit.io.chat.messages import ChatError, ChatReply, ChatRequest, Jpeg
from rvedit.io.chat.retries import (
    RETRY_STATUSES,
    no_json,
    no_reply,
    retry_after_seconds,
    safe_reason,
    with_address,
)
from rvedit.io.errors import UserError

IMAGE_TOKENS = 1120
"""Tokens of an image at the default resolution."""
_KEYS = ("GEMINI_API_KEY", "GOOGLE_API_KEY")
_FATAL_STATUSES = frozenset({401, 403, 404})
_TRANSPORTS = frozenset({"httpx", "httpx2", "httpcore", "httpcore2", "aiohttp", "requests", "anyio"})


class GeminiChat:
    """Gemini, through Google's client. Its retries are off: `with_retries` makes them.

    The key comes from the environment and is masked in messages.

    Args:
        base_url: a URL in place of Google's, such as a proxy's.
        timeout: seconds that a request may take until its reply is complete.
    """

    def __init__(self, base_url: str | None = None, timeout: float = 300.0) -> None:
        self._key = next((os.environ[name].strip() for name in _KEYS if os.environ.get(name, "").strip()), "")
        if not self._key:
            raise UserError(f"no key for Gemini: set {_KEYS[0]}")
        try:
            from google import genai
            from google.genai import types
        except ImportError:
            raise UserError("the Gemini client is not installed: pip install 'rvedit[judge]'") from None
        self._address = public_url(base_url) if base_url else "Gemini"
        self._types = types
        self._timeout = timeout
        options = types.HttpOptions(
            base_url=base_url,
            timeout=int(timeout * 1000),
            retry_options=types.HttpRetryOptions(attempts=1),
        )
        self._client = genai.Client(api_key=self._key, http_options=options)

    async def check(self, probe: ChatRequest) -> None:
        """Ask for a few tokens about `probe`. Raises UserError if Gemini refuses or cannot be reached."""
        try:
            await self._complete(replace(probe, sampling=replace(probe.sampling, max_tokens=16)))
        except ChatError as error:
            if error.scope != "attempt" or "cannot be reached" in str(error):
                raise UserError(f"{self._address}: {probe.model}: {error}") from None

    async def complete(self, request: ChatRequest) -> ChatReply:
        """Return the reply to one attempt. Raises ChatError; that of scope "all" names the URL."""
        try:
            return await self._complete(request)
        except ChatError as error:
            raise with_address(error, self._address) from None

    async def _complete(self, request: ChatRequest) -> ChatReply:
        from google.genai import errors

        response = self._client.aio.models.generate_content(
            model=request.model, contents=self._contents(request), config=self._config(request)
        )
        try:
            reply = await asyncio.wait_for(response, self._timeout)
        except errors.APIError as error:
            raise self._refusal(error) from None
        except Exception as error:
            raise self._transport_error(error) from None
        return read_reply(reply, request.model)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aio.aclose()

    def _contents(self, request: ChatRequest) -> Any:
        part = self._types.Part
        parts = [
            part.from_text(text=piece)
            if isinstance(piece, str)
            else part.from_bytes(
                data=piece.data, mime_type="image/jpeg" if isinstance(piece, Jpeg) else piece.mime
            )
            for piece in request.parts
        ]
        return [self._types.Content(role="user", parts=parts)]

    def _config(self, request: ChatRequest) -> Any:
        sampling = request.sampling
        return self._types.GenerateContentConfig(
            http_options=self._types.HttpOptions(extra_body=sampling.extra),
            system_instruction=request.system,
            max_output_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
            automatic_function_calling=self._types.AutomaticFunctionCallingConfig(disable=True),
        )

    def _refusal(self, error: Any) -> ChatError:
        code = int(error.code or 0)
        reason = self._safe(f"HTTP {code}: {error.message or error.status}")
        if code == 400 and "API key" in reason:
            return ChatError(reason, "all")
        if code in RETRY_STATUSES or code >= 500:
            headers = getattr(error.response, "headers", None) or {}
            return ChatError(reason, "attempt", retry_after_seconds(headers.get("retry-after")))
        return ChatError(reason, "all" if code in _FATAL_STATUSES else "request")

    def _transport_error(self, error: Exception) -> Exception:
        """Return the ChatError of an error of the client, which uses one of several HTTP libraries."""
        kind = type(error)
        if "Timeout" in kind.__name__:
            return ChatError(f"no reply within {self._timeout:g} s", "attempt")
        if isinstance(error, OSError) or kind.__module__.partition(".")[0] in _TRANSPORTS:
            reason = f"it cannot be reached, or the connection broke: {error or kind.__name__}"
            return ChatError(self._safe(reason), "attempt")
        # Includes pydantic's ValidationError.
        return self._unusable(error) if isinstance(error, ValueError) else error

    def _unusable(self, error: ValueError) -> ChatError:
        """Return the error of a body that Google's client cannot parse."""
        cause = error.__cause__ or error
        if isinstance(cause, json.JSONDecodeError):
            return no_json(self._safe(cause.doc))
        return ChatError("the reply is not in the API's format", "attempt")

    def _safe(self, reason: str) -> str:
        return safe_reason(reason, self._key)


def read_reply(reply: Any, asked_model: str) -> ChatReply:
    """Return the reply; a blocked reply has no text, and the reason for it as `finish_reason`.

    Raises ChatError if the body has nothing of a reply.
    """
    usage = reply.usage_metadata
    if not (usage or reply.candidates or reply.prompt_feedback):
        raise no_reply("an object without candidates")
    candidate = (reply.candidates or [None])[0]
    parts = (candidate.content.parts if candidate and candidate.content else None) or []
    text = "".join(part.text for part in parts if part.text and not part.thought)
    finish = candidate.finish_reason if candidate else None
    if finish is None and reply.prompt_feedback:
        finish = reply.prompt_feedback.block_reason
    return ChatReply(
        text=text,
        model=reply.model_version or asked_model,
        finish_reason=str(getattr(finish, "value", finish)) if finish else None,
        response_id=reply.response_id,
        prompt_tokens=(usage.prompt_token_count or 0) if usage else 0,
        completion_tokens=((usage.candidates_token_count or 0) + (usage.thoughts_token_count or 0))
        if usage
        else 0,
    )

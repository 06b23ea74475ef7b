"""A client of OpenAI-compatible endpoints: vLLM, SGLang, llama.cpp or a hosted one."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import warnings
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from rvedit.io.chat.messages import ChatError, ChatReply, ChatRequest, Jpeg, Video
from rvedit.io.chat.retries import (
    RETRY_STATUSES,
    no_json,
    no_reply,
    retry_after_seconds,
    safe_reason,
    with_address,
)
from rvedit.io.errors import UserError

if TYPE_CHECKING:
    from openai import APIStatusError

_FATAL_STATUSES = frozenset({401, 402, 404})  # no key, no credit, no such model: every request fails
_BAD_VALUE = re.compile(
    r"too (?:large|small|long)|at (?:most|least)|m(?:ax|in)imum|exceed|must be|reached", re.I
)
"""What a server says of an argument that it knows, but whose value it does not accept."""


@dataclass(frozen=True)
class Endpoint:
    """An endpoint; `timeout` is the seconds that a request may take until its reply is complete."""

    base_url: str
    api_key: str | None = field(default=None, repr=False)
    timeout: float = 120.0
    prefix: str = "RVEDIT"
    """Of the environment variables in messages."""

    @classmethod
    def from_environment(cls, prefix: str, base_url: str | None = None, timeout: float = 120.0) -> Endpoint:
        """Return the endpoint at `base_url` or <prefix>_BASE_URL, with the key <prefix>_API_KEY if it is set.

        Raises UserError if there is no URL or it is invalid.
        """
        base_url = base_url or os.environ.get(f"{prefix}_BASE_URL")
        if not base_url:
            raise UserError(
                f"no endpoint is given: set `base_url` or {prefix}_BASE_URL, or run a model with `local`"
            )
        try:
            parts = urlsplit(base_url)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            valid = False
        if not valid:
            raise UserError(f"`base_url` {base_url}: not a URL: give one such as http://127.0.0.1:8000/v1")
        return cls(base_url, os.environ.get(f"{prefix}_API_KEY", "").strip() or None, timeout, prefix)

    @property
    def public_url(self) -> str:
        """Return the URL as `public_url` does."""
        return public_url(self.base_url)


def public_url(url: str) -> str:
    """Return the URL without user name, password and query."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


class EndpointChat:
    """A chat model at an endpoint, through the openai client. Its retries are off: `with_retries` makes them.

    The client's environment variables (OPENAI_API_KEY, OPENAI_ORG_ID, ...) are for OpenAI's host, so unused.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        try:
            from openai import AsyncOpenAI
        except ImportError:
            raise UserError("the openai client is not installed: pip install 'rvedit[caption]'") from None
        self.endpoint = endpoint
        # The client needs a key; a server without keys ignores it.
        key = endpoint.api_key or "none"
        self._client = AsyncOpenAI(
            base_url=endpoint.base_url, api_key=key, timeout=endpoint.timeout, max_retries=0
        )
        self._client.organization = self._client.project = None
        # Arguments that the server does not know, with the name to send instead, in order of discovery.
        self._unknown: dict[str, str | None] = {}

    async def check(self, probe: ChatRequest) -> None:
        """Ask which models are served, then for one token about `probe`, which should contain a small image.

        Raises UserError if the server cannot be reached, the key is refused or missing, the model is not
        served or does not accept images. A server that is only busy passes, as retries will follow.
        """
        served = await self._served_models()
        if served and probe.model not in served:
            names = ", ".join(served[:8]) + (", ..." if len(served) > 8 else "")
            raise UserError(
                f"{self.endpoint.public_url}: does not serve {probe.model}: choose a `model` among {names}"
            )
        try:
            await self._complete(replace(probe, sampling=replace(probe.sampling, max_tokens=1)))
        except ChatError as error:
            if error.scope != "attempt":
                hint = "" if served or "404" not in str(error) else "; should the URL end with /v1?"
                raise UserError(f"{self.endpoint.public_url}: refuses {probe.model}: {error}{hint}") from None

    async def _served_models(self) -> list[str]:
        """Return the names of the models that the endpoint lists; empty if it has no list."""
        from openai import APIConnectionError, APIError, APIStatusError

        timeout = min(30.0, self.endpoint.timeout)
        url, variable = self.endpoint.public_url, f"{self.endpoint.prefix}_API_KEY"
        try:
            reply = await asyncio.wait_for(self._client.models.with_raw_response.list(), timeout)
            models = json.loads(reply.http_response.content)["data"]
            return [str(model["id"]) for model in models]
        except APIStatusError as error:
            if error.status_code in (401, 403):
                problem = f"does not accept the key in {variable}" if self.endpoint.api_key else "needs a key"
                remedy = "check it" if self.endpoint.api_key else f"set {variable}"
                raise UserError(f"{url}: {problem} ({error.status_code}): {remedy}") from None
            return []
        except (asyncio.TimeoutError, APIConnectionError) as error:
            timed_out = isinstance(error, asyncio.TimeoutError) or "Timeout" in type(error).__name__
            reason = f"no answer within {timeout:.0f} s" if timed_out else _cause(error)
            raise UserError(f"{url}: cannot be reached ({reason}): check the server and the URL") from None
        except (APIError, ValueError, KeyError, TypeError):
            return []

    async def complete(self, request: ChatRequest) -> ChatReply:
        """Return the reply to one attempt. Raises ChatError; that of scope "all" names the URL."""
        try:
            return await self._complete(request)
        except ChatError as error:
            raise with_address(error, self.endpoint.public_url) from None

    async def _complete(self, request: ChatRequest) -> ChatReply:
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        timeout = self.endpoint.timeout
        arguments = self._known_arguments(request_body(request))
        # Not chat.completions.create, which spends three quarters of the time on validating the body.
        response = self._client.post("/chat/completions", body=arguments, cast_to=object)
        try:
            # The client's timeout holds for each part of the body; this one holds for the whole.
            body = await asyncio.wait_for(response, timeout)
            return read_reply(json.loads(body) if isinstance(body, str) else body, request.model)
        except ChatError as error:
            raise ChatError(self._safe(str(error)), error.scope) from None
        except (asyncio.TimeoutError, APITimeoutError):
            raise ChatError(f"no reply within {timeout:g} s", "attempt") from None
        except APIStatusError as error:
            if self._finds_unknown(arguments, error):
                return await self._complete(request)
            raise self._refusal(error) from None
        except APIConnectionError as error:
            raise ChatError(f"the connection broke: {self._safe(_cause(error))}", "attempt") from None
        except json.JSONDecodeError as error:
            raise no_json(self._safe(error.doc)) from None
        except ValueError:
            raise ChatError("the reply is not text", "attempt") from None

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _known_arguments(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the body without the arguments that the server does not know."""
        for name, other in self._unknown.items():
            if name in body and other:
                body[other] = body[name]
            body.pop(name, None)
        return body

    def _finds_unknown(self, body: dict[str, Any], error: APIStatusError) -> bool:
        """Note the optional arguments that a refusal names; return whether there are any.

        They are left out from then on, with one warning for each. OpenAI's newer models name
        max_completion_tokens as the replacement of max_tokens.
        """
        message = f"{_message(error)} {error.param or ''}".rstrip()
        if error.status_code not in (400, 422) or _BAD_VALUE.search(message):
            return False
        names = [name for name in body if name not in ("model", "messages") and _names(message, name)]
        for name in names:
            if name not in self._unknown:
                other = "max_completion_tokens"
                self._unknown[name] = other if name == "max_tokens" and _names(message, other) else None
                instead = f"sending {other} instead" if self._unknown[name] else "leaving it out"
                reason = self._safe(f"HTTP {error.status_code}: {message}")
                text = f"{self.endpoint.public_url}: refuses {name}: {instead} ({reason})"
                warnings.warn(text, stacklevel=2)
        return bool(names)

    def _refusal(self, error: APIStatusError) -> ChatError:
        status = error.status_code
        reason = self._safe(f"HTTP {status}: {_message(error)}")
        if error.code == "insufficient_quota":  # a 429 for which a retry is useless
            return ChatError(reason, "all")
        return ChatError(
            reason, status_scope(status), retry_after_seconds(error.response.headers.get("retry-after"))
        )

    def _safe(self, reason: str) -> str:
        return safe_reason(reason, self.endpoint.api_key)


def request_body(request: ChatRequest) -> dict[str, Any]:
    """Return the request's JSON body."""
    content = [_part(part) for part in request.parts]
    system = [] if request.system is None else [{"role": "system", "content": request.system}]
    sampling = request.sampling
    optional = {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed}
    body = {
        "model": request.model,
        "messages": [*system, {"role": "user", "content": content}],
        "max_tokens": sampling.max_tokens,
        **optional,
        **sampling.extra,
    }
    return {name: value for name, value in body.items() if value is not None}


def _part(part: str | Jpeg | Video) -> dict[str, Any]:
    """Return a content part; whole videos in the form that vLLM and others accept."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if isinstance(part, Jpeg):
        return {"type": "image_url", "image_url": {"url": _data_url(part.data, "image/jpeg")}}
    return {"type": "video_url", "video_url": {"url": _data_url(part.data, part.mime)}}


def _data_url(data: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def read_reply(body: Any, asked_model: str) -> ChatReply:
    """Parse a reply body, allowing for differences between servers. Raises ChatError if it has no choice."""
    try:
        choice = body["choices"][0]
        message = choice["message"]
        text = _text(message.get("content"))
        reasoning = _text(message.get("reasoning_content") or message.get("reasoning"))
        usage = body.get("usage") or {}
        return ChatReply(
            text=text,
            model=str(body.get("model") or asked_model),
            finish_reason=choice.get("finish_reason"),
            response_id=body.get("id"),
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            completion_tokens=int(usage.get("completion_tokens") or 0),
            refusal=_text(message.get("refusal")),
            reasoning_content="" if text.strip() else reasoning,
        )
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        raise _no_choice(body) from None


def _text(content: Any) -> str:
    """Return a message's content, which may be null or a list of parts."""
    if isinstance(content, list):
        content = "".join(part.get("text") or "" for part in content)
    return str(content or "").encode("utf-8", "replace").decode()  # a lone surrogate cannot be encoded


def _no_choice(body: Any) -> ChatError:
    """Return the error of a body without a choice: the one it states, or that it is not a reply."""
    error = body.get("error") if isinstance(body, dict) else None
    if error:
        code = str(error.get("code")) if isinstance(error, dict) else ""
        return ChatError(
            f"HTTP 200 with the error: {_statement(error)}",
            status_scope(int(code)) if code.isdecimal() else "all",
        )
    if isinstance(body, dict) and "choices" in body:
        return ChatError("the reply has no choice", "attempt")
    return no_reply(json.dumps(body))


def status_scope(status: int) -> Literal["attempt", "request", "all"]:
    """Return what an HTTP status means for further requests."""
    if status in RETRY_STATUSES or status >= 500:
        return "attempt"
    return "all" if status in _FATAL_STATUSES else "request"


def _names(message: str, argument: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(argument)}(?!\w)", message) is not None


def _message(error: APIStatusError) -> str:
    """Return the server's error message, wherever it is in the reply."""
    return _statement(error.body) or error.response.text or error.response.reason_phrase


def _statement(body: Any) -> str:
    """Return the message of an error's JSON; lists, such as those of a failed validation, are joined."""
    if isinstance(body, list):
        return "; ".join(map(_statement, body))
    if not isinstance(body, dict):
        return str(body or "")
    if "msg" in body and "loc" in body:
        return f"{'.'.join(map(str, body['loc']))}: {body['msg']}"
    return _statement(body.get("error") or body.get("message") or body.get("detail")) or str(body)


def _cause(error: BaseException) -> str:
    """Return the innermost cause, as the client's own message does not name it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error) or type(error).__name__

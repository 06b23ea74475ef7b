"""Any OpenAI-compatible endpoint: vLLM, SGLang, llama.cpp, a hosted one."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rvedit.io.chat.messages import ChatError, ChatReply, ChatRequest, Jpeg, Video
from rvedit.io.chat.retries import REASON_LENGTH, TRY_AGAIN, retry_after_seconds, safe_reason
from rvedit.io.errors import UserError

if TYPE_CHECKING:
    from openai import APIStatusError

_ALL = frozenset({401, 402, 404})  # no key, no credit, no such model: the next request fares no better


@dataclass(frozen=True)
class Endpoint:
    """Where to ask. `timeout`: seconds until a request without a whole reply is given up."""

    base_url: str
    api_key: str | None = field(default=None, repr=False)
    timeout: float = 120.0
    prefix: str = "RVEDIT"
    """Of the environment variables that name it, for messages."""

    @classmethod
    def from_environment(cls, prefix: str, base_url: str | None = None, timeout: float = 120.0) -> Endpoint:
        """`base_url`, or what `<prefix>_BASE_URL` holds, with the key in `<prefix>_API_KEY` if there is one.

        Raises UserError where there is no address or it is none.
        """
        base_url = base_url or os.environ.get(f"{prefix}_BASE_URL")
        if not base_url:
            raise UserError(
                f"there is no endpoint to ask: give --base-url URL, set {prefix}_BASE_URL, "
                "or name a model with --local"
            )
        try:
            parts = urlsplit(base_url)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            valid = False
        if not valid:
            raise UserError(f"--base-url {base_url}: not an address such as http://127.0.0.1:8000/v1")
        return cls(base_url, os.environ.get(f"{prefix}_API_KEY", "").strip() or None, timeout, prefix)

    @property
    def shown(self) -> str:
        """The address without a user's name and password."""
        parts = urlsplit(self.base_url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


class EndpointChat:
    """Asks an endpoint by the openai client, whose own retries are off: ours are counted and bounded in time.

    The client's own variables (OPENAI_API_KEY, OPENAI_ORG_ID, ...) are meant for one host, and stay unused.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        try:
            from openai import AsyncOpenAI
        except ImportError:
            raise UserError(
                "asking an endpoint needs the openai client: pip install 'rvedit[caption]'"
            ) from None
        self.endpoint = endpoint
        # A server without a key ignores this one; the client insists on having some.
        key = endpoint.api_key or "none"
        self._client = AsyncOpenAI(
            base_url=endpoint.base_url, api_key=key, timeout=endpoint.timeout, max_retries=0
        )
        self._client.organization = self._client.project = None

    async def check(self, probe: ChatRequest) -> None:
        """Ask which models are served, then for one token about `probe`, which should hold a tiny picture.

        Raises UserError where nobody answers, the key is refused or missing, the model is not served or takes
        no pictures. A server that is merely busy passes: that is what retries are for.
        """
        served = await self._served_models()
        if served and probe.model not in served:
            names = ", ".join(served[:8]) + (", ..." if len(served) > 8 else "")
            raise UserError(
                f"{self.endpoint.shown}: does not serve {probe.model}: choose with --model among {names}"
            )
        try:
            await self.complete(replace(probe, sampling=replace(probe.sampling, max_tokens=1)))
        except ChatError as error:
            if error.scope != "again":
                hint = "" if served or "404" not in str(error) else "; should the address end with /v1?"
                raise UserError(f"{self.endpoint.shown}: refuses {probe.model}: {error}{hint}") from None

    async def _served_models(self) -> list[str]:
        """The names that the endpoint gives; none where it keeps no list."""
        from openai import APIConnectionError, APIError, APIStatusError

        timeout = min(30.0, self.endpoint.timeout)
        shown, variable = self.endpoint.shown, f"{self.endpoint.prefix}_API_KEY"
        try:
            reply = await asyncio.wait_for(self._client.models.with_raw_response.list(), timeout)
            models = json.loads(reply.http_response.content)["data"]
            return [str(model["id"]) for model in models]
        except APIStatusError as error:
            if error.status_code in (401, 403):
                wanted = f"does not accept the key in {variable}" if self.endpoint.api_key else "wants a key"
                remedy = "check it" if self.endpoint.api_key else f"set {variable}"
                raise UserError(f"{shown}: {wanted} ({error.status_code}): {remedy}") from None
            return []
        except (asyncio.TimeoutError, APIConnectionError) as error:
            is_late = isinstance(error, asyncio.TimeoutError) or "Timeout" in type(error).__name__
            why = f"no answer within {timeout:.0f} s" if is_late else _cause(error)
            raise UserError(
                f"{shown}: cannot be reached ({why}): is the server up, the address right?"
            ) from None
        except (APIError, ValueError, KeyError, TypeError):
            return []

    async def complete(self, request: ChatRequest) -> ChatReply:
        """One try. Raises ChatError."""
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        timeout = self.endpoint.timeout
        # Not chat.completions.create: it walks the whole body against its types, three quarters of the cost.
        sent = self._client.post("/chat/completions", body=_body(request), cast_to=object)
        try:
            # The client's time-out is for each piece of the body; this one is for all of it.
            body = await asyncio.wait_for(sent, timeout)
            return _reply(json.loads(body) if isinstance(body, str) else body, request)
        except ChatError as error:
            raise ChatError(self._safe(str(error)), error.scope) from None
        except (asyncio.TimeoutError, APITimeoutError):
            raise ChatError(f"no reply within {timeout:g} s", "again") from None
        except APIStatusError as error:
            raise self._refusal(error) from None
        except APIConnectionError as error:
            raise ChatError(f"the connection broke: {self._safe(_cause(error))}", "again") from None
        except ValueError:
            raise ChatError("the reply is cut off or not JSON", "again") from None

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _refusal(self, error: APIStatusError) -> ChatError:
        status = error.status_code
        reason = self._safe(f"HTTP {status}: {_message(error)}")
        if error.code == "insufficient_quota":  # a 429 that waiting does not help
            return ChatError(reason, "all")
        if status in TRY_AGAIN or status >= 500:
            return ChatError(reason, "again", retry_after_seconds(error.response.headers.get("retry-after")))
        return ChatError(reason, "all" if status in _ALL else "request")

    def _safe(self, reason: str) -> str:
        return safe_reason(reason, self.endpoint.api_key)


def _body(request: ChatRequest) -> dict[str, Any]:
    """The request as the endpoint's API words it."""
    content = [_part(part) for part in request.parts]
    system = [] if request.system is None else [{"role": "system", "content": request.system}]
    sampling = request.sampling
    drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed}
    return {
        "model": request.model,
        "messages": [*system, {"role": "user", "content": content}],
        "max_tokens": sampling.max_tokens,
        **{name: value for name, value in drawn.items() if value is not None},
        **sampling.extra,
    }


def _part(part: str | Jpeg | Video) -> dict[str, Any]:
    """A piece of the turn; whole clips as vLLM and others take them."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if isinstance(part, Jpeg):
        return {"type": "image_url", "image_url": {"url": _data_url(part.data, "image/jpeg")}}
    return {"type": "video_url", "video_url": {"url": _data_url(part.data, part.mime)}}


def _data_url(data: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def _reply(body: Any, request: ChatRequest) -> ChatReply:
    """Read leniently what servers write differently. Raises ChatError where there is no choice in it."""
    try:
        choice = body["choices"][0]
        message = choice["message"]
        content = message.get("content") or ""
        if isinstance(content, list):
            content = "".join(part.get("text") or "" for part in content)
        usage = body.get("usage") or {}
        return ChatReply(
            text=str(content).encode("utf-8", "replace").decode(),  # half of a surrogate pair is no text
            model=str(body.get("model") or request.model),
            finish_reason=choice.get("finish_reason"),
            response_id=body.get("id"),
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            completion_tokens=int(usage.get("completion_tokens") or 0),
        )
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        error = body.get("error") if isinstance(body, dict) else None
        said = error.get("message") if isinstance(error, dict) else error
        raise ChatError(
            f"the reply holds no choice{f': {said}' if said else ''}"[:REASON_LENGTH], "again"
        ) from None


def _message(error: APIStatusError) -> str:
    """What the server says, wherever it says it."""
    body: Any = error.body
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail") or body
    return str(body or error.response.text or error.response.reason_phrase)


def _cause(error: BaseException) -> str:
    """The innermost reason; the client's own says no more than that there was an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error) or type(error).__name__

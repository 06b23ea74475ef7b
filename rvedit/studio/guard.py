"""Checks of every request, before anything else sees it: host, origin, password and size."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_FETCHED_ELSEWHERE = (
    "/gradio_api/proxy=",
    *(f"/gradio_api/file{mark}{scheme}:" for mark in "=/" for scheme in ("http", "https")),
)
"""Routes of Gradio by which the server would fetch other addresses."""
_HEADERS = (
    # Nothing is loaded from elsewhere, and no other page may frame this one. Gradio compiles its templates.
    (
        b"content-security-policy",
        b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
        b"style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' blob:; "
        b"worker-src 'self' blob:; connect-src 'self' data: blob:; font-src 'self' data:; "
        b"frame-ancestors 'none'; base-uri 'self'; form-action 'self'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


@dataclass(frozen=True)
class Guard:
    """An ASGI middleware that refuses requests before the app sees them.

    - 421: a `Host` that is not this machine, if there is no password: a page of another site may have pointed
      its own name to this address (DNS rebinding).
    - 403: a request that a page of another origin made; links to the page are allowed.
    - 401: another user name or password.
    - 413: a body of more than `max_bytes`.
    """

    app: App
    max_bytes: int
    auth: str | None = None
    """`user:password`, or None for no password."""

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass a request on or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            else:  # there are no web sockets here
                await send({"type": "websocket.close", "code": 1008})
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await _refuse(send, *refusal)
            return
        limited = _LimitedBody(receive, send, self.max_bytes)
        try:
            await self.app(scope, limited.receive, limited.send)
        except Exception:
            if not limited.is_exceeded:
                raise
        if limited.is_exceeded:
            await limited.refuse()

    def _refusal(self, scope: MutableMapping[str, Any], headers: dict[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if self.auth is None and _name(host) not in LOOPBACK:
            return 421, f"host {host}: open the page as http://127.0.0.1 or http://localhost"
        if not _is_same_origin(scope, headers, host):
            return 403, "requests of other origins are refused"
        if self.auth is not None and not _is_authorized(headers.get("authorization", ""), self.auth):
            return 401, "give the user name and the password of `rvedit studio --auth`"
        if scope["path"].startswith(_FETCHED_ELSEWHERE):
            return 403, "other addresses are not fetched"
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self.max_bytes:
            return 413, _too_large(self.max_bytes)
        return None


class _TooLargeError(Exception):
    """A body without a stated length is too large."""


class _LimitedBody:
    """The two channels of a request: counts the body, and adds headers to the response.

    What the app says of a body that is too large, such as 500, is dropped.
    """

    def __init__(self, receive: Receive, send: Send, max_bytes: int) -> None:
        self._receive, self._send, self._max_bytes = receive, send, max_bytes
        self._num_bytes, self._is_started = 0, False

    @property
    def is_exceeded(self) -> bool:
        return self._num_bytes > self._max_bytes

    async def receive(self) -> Message:
        message = await self._receive()
        self._num_bytes += len(message.get("body", b""))
        if self.is_exceeded:
            raise _TooLargeError
        return message

    async def send(self, message: Message) -> None:
        if self.is_exceeded and not self._is_started:
            return
        if message["type"] == "http.response.start":
            self._is_started = True
            message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
        await self._send(message)

    async def refuse(self) -> None:
        if not self._is_started:
            await _refuse(self._send, 413, _too_large(self._max_bytes))


def _too_large(max_bytes: int) -> str:
    return (
        f"larger than the limit of {max_bytes / 1e9:g} GB: cut the clip, or start with a larger --max-upload"
    )


async def _refuse(send: Send, status: int, reason: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close"), *_HEADERS]
    if status == 401:
        headers.append((b"www-authenticate", b'Basic realm="rvedit studio", charset="UTF-8"'))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": reason.encode()})


def _name(host: str) -> str:
    """Return the name in a `Host` header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_same_origin(scope: MutableMapping[str, Any], headers: dict[str, str], host: str) -> bool:
    """Return whether a request comes from this page, from no page, or from a link to it."""
    origin = headers.get("origin")
    if origin is not None:
        return urlsplit(origin).netloc == host
    if headers.get("sec-fetch-site", "none") in ("none", "same-origin"):
        return True
    return scope["method"] == "GET" and headers.get("sec-fetch-mode") == "navigate"


def _is_authorized(header: str, auth: str) -> bool:
    scheme, _, given = header.partition(" ")
    expected = base64.b64encode(auth.encode()).decode()
    return scheme.lower() == "basic" and secrets.compare_digest(given.strip().encode(), expected.encode())


def refuse_downloads() -> None:
    """Let Gradio fetch no address that a request gives in place of an upload (gradio).

    It would write what it gets to the uploads, of any size.
    """
    import gradio as gr

    async def refuse(url: str) -> Any:
        raise gr.Error(
            f"{url}: other addresses are not fetched: upload the file", print_exception=False, title=""
        )

    gr.processing_utils.async_ssrf_protected_get = refuse

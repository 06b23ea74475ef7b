"""What stand-ins for web services share: a server of this machine's own, and JSON replies."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

Self = TypeVar("Self", bound="LocalServer")


class LocalServer:
    """Serves at `url` while its `with` block runs; `stop` is set at the block's end."""

    def __init__(self, handler: type[JsonHandler]) -> None:
        self.stop = threading.Event()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (handler,), {"owner": self}))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self: Self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Whoever asked may go at any time, and some are killed."""


class JsonHandler(BaseHTTPRequestHandler):
    """Answers with JSON; `owner` is the server."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # as real servers have it: a small reply would wait for 40 ms

    def log_message(self, *_: Any) -> None:
        pass

    def send(
        self, status: int, body: Any, headers: dict[str, str] | None = None, *, cut: bool = False
    ) -> None:
        """`body` is JSON to be, or bytes as they are; `cut`: the connection ends in the middle of it."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if cut else data)
        except OSError:  # whoever asked has gone
            self.close_connection = True
        if cut:
            self.close_connection = True

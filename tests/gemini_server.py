"""A stand-in for Gemini's REST address, on 127.0.0.1, that misbehaves as it is told."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "gemini-very-secret-0123"


@dataclass
class GeminiServer:
    """`behave` names what a request meets: ok, empty, blocked, cut, garbage, hang, or a status (429:1)."""

    say: Callable[[dict[str, Any]], str]
    behave: Callable[[int], str] = lambda number: "ok"
    asked: list[dict[str, Any]] = field(default_factory=list)

    def __enter__(self) -> GeminiServer:
        handler = type("Handler", (_Handler,), {"owner": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.stop = threading.Event()
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.server.shutdown()
        self.server.server_close()


def pictures(body: dict[str, Any]) -> list[str]:
    """Digests of the pictures of a request, in their order."""
    parts = body["contents"][0]["parts"]
    return [
        hashlib.sha256(base64.urlsafe_b64decode(part["inlineData"]["data"])).hexdigest()
        for part in parts
        if "inlineData" in part
    ]


class _Handler(BaseHTTPRequestHandler):
    owner: GeminiServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body |= {"path": self.path}
        key = self.headers.get("x-goog-api-key")
        if key != KEY:
            said = {"code": 400, "message": f"API key not valid: {key}", "status": "INVALID_ARGUMENT"}
            self._send(400, {"error": said})
            return
        probe = body.get("generationConfig", {}).get("maxOutputTokens") == 16
        if not probe:
            self.owner.asked.append(body)
        action = "ok" if probe else self.owner.behave(len(self.owner.asked) - 1)
        status, _, wait = action.partition(":")
        if status.isdigit():
            said = {"code": int(status), "message": f"told to fail {key}", "status": "UNAVAILABLE"}
            self._send(int(status), {"error": said}, {"Retry-After": wait} if wait else {})
            return
        if action == "hang":
            self.owner.stop.wait(10)
            return
        parts = [{"text": "Let me think of 12 things.", "thought": True}, {"text": self.owner.say(body)}]
        reply: dict[str, Any] = {
            "candidates": [{"content": {"role": "model", "parts": parts}, "finishReason": "STOP"}],
            "modelVersion": "gemini-3.1-pro-preview-07",
            "responseId": f"reply-{len(self.owner.asked)}",
            "usageMetadata": {
                "promptTokenCount": 11000,
                "candidatesTokenCount": 40,
                "thoughtsTokenCount": 300,
            },
        }
        if action == "empty":  # all tokens went into thinking
            reply["candidates"] = [{"content": {"role": "model"}, "finishReason": "MAX_TOKENS"}]
        elif action == "blocked":
            reply |= {"candidates": [], "promptFeedback": {"blockReason": "SAFETY"}}
        elif action == "garbage":
            parts[1]["text"] = "I would say eighty or so."
        data = json.dumps(reply).encode()
        self._send(200, data[: len(data) // 2] if action == "cut" else data)

    def _send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            self.close_connection = True

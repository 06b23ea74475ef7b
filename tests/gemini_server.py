"""A stand-in for Gemini's REST address, on 127.0.0.1, that misbehaves as it is told."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable
from typing import Any

from local_server import JsonHandler, LocalServer

KEY = "gemini-very-secret-0123"


class GeminiServer(LocalServer):
    """`behave` names what a request meets: ok, empty, draft, blocked, filtered, other, html, error, cut,
    garbage, hang, or a status (429:1).
    """

    def __init__(
        self, say: Callable[[dict[str, Any]], str], behave: Callable[[int], str] = lambda number: "ok"
    ) -> None:
        self.say, self.behave = say, behave
        self.asked: list[dict[str, Any]] = []
        self.jobs: list[dict[str, Any]] = []
        """Bodies of batch jobs; they are answered when `release` is set."""
        self.release = threading.Event()
        self.unnamed = 0
        """How often a job's state is told with replies that do not name their requests."""
        super().__init__(_Handler)


def pictures(body: dict[str, Any]) -> list[str]:
    """Digests of the pictures of a request, in their order."""
    parts = body["contents"][0]["parts"]
    return [
        hashlib.sha256(base64.urlsafe_b64decode(part["inlineData"]["data"])).hexdigest()
        for part in parts
        if "inlineData" in part
    ]


class _Handler(JsonHandler):
    owner: GeminiServer

    def do_GET(self) -> None:
        jobs = [self._job(number) for number in range(len(self.owner.jobs))]
        name = self.path.partition("?")[0].rpartition("/")[2]
        self.send(200, {"operations": jobs} if name == "batches" else jobs[int(name)])

    def _job(self, number: int) -> dict[str, Any]:
        """A job, with the replies to its requests if it is released."""
        batch = self.owner.jobs[number]["batch"]
        shown = {"displayName": batch["displayName"], "model": "models/m", "state": "BATCH_STATE_RUNNING"}
        if self.owner.release.is_set():
            replies = []
            for entry in batch["inputConfig"]["requests"]["requests"]:
                content = {"parts": [{"text": self.owner.say(entry["request"])}]}
                response = {
                    "candidates": [{"content": content, "finishReason": "STOP"}],
                    "modelVersion": "gemini-of-a-batch",
                    "usageMetadata": {"promptTokenCount": 11000, "candidatesTokenCount": 40},
                }
                named = {} if self.owner.unnamed > 0 else {"metadata": entry["metadata"]}
                replies.append({**named, "response": response})
            self.owner.unnamed -= 1
            output = {"inlinedResponses": {"inlinedResponses": replies}}
            shown |= {"state": "BATCH_STATE_SUCCEEDED", "output": output}
        return {"name": f"batches/{number}", "metadata": shown}

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith(":batchGenerateContent"):
            self.owner.jobs.append(body)
            self.send(200, self._job(len(self.owner.jobs) - 1))
            return
        body |= {"path": self.path}
        key = self.headers.get("x-goog-api-key")
        if key != KEY:
            said = {"code": 400, "message": f"API key not valid: {key}", "status": "INVALID_ARGUMENT"}
            self.send(400, {"error": said})
            return
        probe = body.get("generationConfig", {}).get("maxOutputTokens") == 16
        if not probe:
            self.owner.asked.append(body)
        action = "ok" if probe else self.owner.behave(len(self.owner.asked) - 1)
        status, _, wait = action.partition(":")
        if status.isdigit():
            said = {"code": int(status), "message": f"told to fail {key}", "status": "UNAVAILABLE"}
            self.send(int(status), {"error": said}, {"Retry-After": wait} if wait else {})
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
        elif action == "draft":
            reply["candidates"][0]["finishReason"] = "MAX_TOKENS"
        elif action in ("filtered", "other"):
            finish = {"filtered": "PROHIBITED_CONTENT", "other": "OTHER"}[action]
            reply["candidates"] = [{"finishReason": finish}]
        elif action == "error":
            reply = {"error": "no such path"}
        elif action == "blocked":
            reply |= {"candidates": [], "promptFeedback": {"blockReason": "SAFETY"}}
        elif action == "garbage":
            parts[1]["text"] = "I would say eighty or so."
        data = b"<html>Sign in</html>" if action == "html" else json.dumps(reply).encode()
        self.send(200, data[: len(data) // 2] if action == "cut" else data)

"""A stand-in for an OpenAI-compatible endpoint, on 127.0.0.1, that misbehaves as it is told."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

from local_server import JsonHandler, LocalServer

MODEL = "Qwen/Qwen3-VL-8B-Instruct"
LONGEST_HANG = 10.0  # seconds


@dataclass(frozen=True)
class Asked:
    """One request: which pictures, how often they were asked about before, and its place among all."""

    digest: str
    tries: int
    number: int
    body: dict[str, Any]


# Messages and finish reasons of replies whose content is empty; {} is what the server says.
MISPLACED = {
    "refusal-field": ({"content": None, "refusal": "I cannot\nassist with that."}, "stop"),
    "filter": ({"content": ""}, "content_filter"),
    "reasoning": ({"content": None, "reasoning_content": "{}"}, "stop"),
    "reasoning-renamed": ({"content": None, "reasoning": "{}"}, "stop"),
    "reasoning-cut": ({"content": None, "reasoning_content": "{}"}, "length"),
    "reasoning-draft": ({"content": None, "reasoning_content": "Let me see."}, "stop"),
    "reasoning-tools": ({"content": "", "reasoning_content": "{}"}, "tool_calls"),
    "abort": ({"content": "{}"}, "abort"),
}
# Bodies with status 200 that are not replies; those of a dict are JSON.
STRANGE: dict[str, Any] = {
    "html": b"<!DOCTYPE html>\n<html>Sign in</html>",
    "plain": b"no such path",
    "error": {"error": "Unexpected endpoint or method"},
    "error-401": {"error": {"message": "your trial ended", "code": 401}},
    "object": {"detail": "Not Found"},
    "list": ["nothing"],
}


def caption_of(digest: str) -> str:
    return f"A clip whose pictures hash to {digest[:16]}."


class Batches:
    """The batch API of a `ChatServer`: files and jobs.

    Jobs are answered when `release` is set. `answer` returns a line's status and the text of its reply. The
    first `torn` downloads of a file are cut off.
    """

    def __init__(self, answer: Callable[[dict[str, Any]], tuple[int, str]]) -> None:
        self.answer, self.release = answer, threading.Event()
        self.files: dict[str, str] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.states_asked = self.torn = 0
        self.status = "completed"

    @property
    def ids(self) -> list[str]:
        """The ids of all requests that were sent, in order."""
        return [json.loads(line)["custom_id"] for job in self.jobs.values() for line in job["lines"]]

    def post(self, handler: JsonHandler) -> None:
        data = handler.rfile.read(int(handler.headers["Content-Length"]))
        if handler.path.endswith("/files"):
            name = f"file-{len(self.files)}"
            lines = data.decode("utf-8", "replace").splitlines()
            self.files[name] = "\n".join(line for line in lines if line.startswith('{"custom_id'))
            handler.send(200, {"id": name, "object": "file"})
            return
        asked = json.loads(data)
        name = f"batch-{len(self.jobs)}"
        lines = self.files[asked["input_file_id"]].splitlines()
        self.jobs[name] = {"id": name, "lines": lines, "metadata": asked["metadata"]}
        handler.send(200, self._job(name))

    def get(self, handler: JsonHandler) -> None:
        place = handler.path.partition("?")[0].split("/")
        if "files" in place:
            content = self.files[place[place.index("files") + 1]].encode()
            handler.send(200, content[: len(content) // 2] if self.torn > 0 else content)
            self.torn -= 1
        elif place[-1] == "batches":
            jobs = [self._job(name) for name in self.jobs]
            handler.send(200, {"object": "list", "data": jobs, "has_more": False})
        else:
            self.states_asked += 1
            handler.send(200, self._job(place[-1]))

    def _job(self, name: str) -> dict[str, Any]:
        job = self.jobs[name]
        shown = {"id": name, "object": "batch", "metadata": job["metadata"], "status": "in_progress"}
        if self.release.is_set() and self.status == "failed":
            return shown | {"status": "failed", "errors": {"data": [{"message": "no such model"}]}}
        if self.release.is_set():
            output = f"output-{name}"
            if output not in self.files:
                self.files[output] = "\n".join(
                    json.dumps(self._line(json.loads(line))) for line in job["lines"]
                )
            shown |= {"status": self.status, "output_file_id": output}
        return shown

    def _line(self, asked: dict[str, Any]) -> dict[str, Any]:
        status, text = self.answer(asked)
        body: dict[str, Any] = {"error": {"message": text}}
        if status == 200:
            choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            usage = {"prompt_tokens": 100, "completion_tokens": 10}
            body = {"id": "r", "model": asked["body"]["model"], "choices": [choice], "usage": usage}
        return {"custom_id": asked["custom_id"], "response": {"status_code": status, "body": body}}


class ChatServer(LocalServer):
    """Serves while its `with` block runs.

    `behave` names what a request meets: ok, empty, blank, refusal, think, only-think, quoted, length,
    no-choice, cut-json, truncated, reset, hang, a key of MISPLACED or STRANGE, or a status such as 500;
    "429:1" has a Retry-After of one second, "429:date" a date two seconds off. `unknown` has the bodies of
    the refusals, with status 400 or 422, of arguments that the server does not know.
    """

    def __init__(
        self,
        behave: Callable[[Asked], str] = lambda asked: "ok",
        latency: float = 0.0,
        together: int = 0,
        models: Sequence[str] | None = (MODEL,),
        key: str | None = None,
        served_as: str | None = None,
        say: Callable[[Asked], str] = lambda asked: caption_of(asked.digest),
        unknown: dict[str, tuple[int, Any]] | None = None,
        batches: Batches | None = None,
    ) -> None:
        self.batches = batches
        self.behave, self.latency, self.models, self.key = behave, latency, models, key
        self.together, self.gathered = together, threading.Event()
        self.served_as, self.say, self.unknown = served_as, say, unknown or {}
        self.refused: list[str] = []
        self.asked: list[Asked] = []
        self.answered: Counter[str] = Counter()
        self.arrivals: list[float] = []
        self.headers: list[dict[str, str]] = []
        self.probes = 0
        self.in_flight = self.most_in_flight = 0
        self.lock = threading.Lock()
        super().__init__(_Handler)
        self.url += "/v1"

    @property
    def times_answered(self) -> Counter[str]:
        with self.lock:
            return Counter(self.answered)


class _Handler(JsonHandler):
    owner: ChatServer

    def do_GET(self) -> None:
        if not self._admitted():
            return
        if self.owner.batches is not None and ("/batches" in self.path or "/files/" in self.path):
            self.owner.batches.get(self)
        elif self.owner.models is None or not self.path.endswith("/models"):
            self.send(404, {"error": {"message": "Not Found"}})
        else:
            self.send(200, {"object": "list", "data": [{"id": name} for name in self.owner.models]})

    def do_POST(self) -> None:
        if self.owner.batches is not None and not self.path.endswith("/chat/completions"):
            if self._admitted():
                self.owner.batches.post(self)
            return
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._admitted():
            return
        owner = self.owner
        if name := next((name for name in owner.unknown if name in body), None):
            with owner.lock:
                owner.refused.append(name)
            self.send(*owner.unknown[name])
            return
        pictures = [
            base64.b64decode(part[part["type"]]["url"].split(",", 1)[1])
            for part in body["messages"][-1]["content"]
            if part["type"] in ("image_url", "video_url")
        ]
        digest = hashlib.sha256(b"".join(pictures)).hexdigest()
        with owner.lock:
            if 1 in (body.get("max_tokens"), body.get("max_completion_tokens")):
                owner.probes += 1
                asked = Asked(digest, 0, -1, body)
            else:
                tries = sum(a.digest == digest for a in owner.asked)
                asked = Asked(digest, tries, len(owner.asked), body)
                owner.asked.append(asked)
                owner.arrivals.append(time.monotonic())
            owner.in_flight += 1
            owner.most_in_flight = max(owner.most_in_flight, owner.in_flight)
            if owner.most_in_flight >= owner.together:
                owner.gathered.set()
        try:
            owner.stop.wait(owner.latency)
            if (
                asked.number >= 0
            ):  # not a probe: the first answers wait for as many requests as are to be seen
                owner.gathered.wait(60)
            action = "ok" if asked.number < 0 and owner.models else owner.behave(asked)
        finally:
            with owner.lock:
                owner.in_flight -= 1
        self._act(action, asked)

    def _admitted(self) -> bool:
        with self.owner.lock:
            self.owner.headers.append(dict(self.headers))
        if self.owner.key and self.headers["Authorization"] != f"Bearer {self.owner.key}":
            said = self.headers["Authorization"]  # some servers repeat what they were sent
            self.send(401, {"error": {"message": f"Incorrect API key provided: {said}"}})
            return False
        return True

    def _act(self, action: str, asked: Asked) -> None:
        status, _, wait = action.partition(":")
        if action == "hang":
            self.owner.stop.wait(LONGEST_HANG)
            self.close_connection = True
        elif action == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        elif status.isdigit():
            after = formatdate(time.time() + 2, usegmt=True) if wait == "date" else wait
            said = {"error": {"message": f"told to fail {self.headers['Authorization']}", "code": None}}
            self.send(int(status), said, {"Retry-After": after} if wait else {})
        elif action in STRANGE:
            kind = "text/html" if action == "html" else "application/json"
            self.send(200, STRANGE[action], {"Content-Type": kind})
        else:
            self._reply(action, asked)

    def _reply(self, action: str, asked: Asked) -> None:
        caption = self.owner.say(asked)
        texts = {
            "empty": "",
            "blank": " \n ",
            "refusal": "I'm sorry, but I can't help with that.",
            "think": f"<think>\nLet me see.\n</think>\n\n{caption}",
            "only-think": "<think>Let me see",
            "quoted": f'**Caption:** "{caption}"',
            "length": f"{caption} It goes on and",
        }
        message = {"role": "assistant", "content": texts.get(action, caption)}
        finish = "length" if action in ("length", "only-think") else "stop"
        if action in MISPLACED:
            fields, finish = MISPLACED[action]
            message |= {name: value and value.replace("{}", caption) for name, value in fields.items()}
        reply = {
            "id": f"reply-{asked.number}",
            "model": self.owner.served_as or asked.body["model"],
            "choices": [{"message": message, "finish_reason": finish}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10},
        }
        if action == "no-choice":
            said = f"upstream is busy {self.headers['Authorization']}"
            reply = {"error": {"message": said, "code": 502}}
        data = json.dumps(reply).encode()
        if action == "cut-json":
            data = data[: len(data) // 2]
        with self.owner.lock:
            if asked.number >= 0 and action not in ("no-choice", "cut-json", "truncated"):
                self.owner.answered[asked.digest] += 1
        self.send(200, data, cut=action == "truncated")

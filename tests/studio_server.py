"""A running `rvedit studio` for tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import URLError

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class StudioServer:
    """`rvedit studio` on a free port of this machine, while its `with` block runs."""

    def __init__(self, folder: Path, *options: str, **environment: str) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._options, self._environment = options, environment

    def __enter__(self) -> StudioServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end(signal.SIGTERM)

    def start(self) -> None:
        words = ["studio", "--port", str(self.port), "--folder", str(self.folder), "--device", "cpu"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **self._environment}
        command = [sys.executable, "-m", "rvedit_cli", *words, *self._options]
        self.process = subprocess.Popen(command, env=environment, cwd=self.folder.parent)
        until(self._answers)

    def end(self, number: int) -> None:
        self.process.send_signal(number)
        self.process.wait(30)

    def _answers(self) -> bool:
        assert self.process.poll() is None, "the server has ended"
        try:
            urllib.request.urlopen(self.url, timeout=5).close()
        except URLError as error:
            return hasattr(error, "code")  # such as 401
        return True


def until(condition: Any, seconds: float = 120.0) -> Any:
    """Return what `condition` returns as soon as that is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError(f"still not so after {seconds} s")

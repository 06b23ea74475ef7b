"""A journal on disk: keys and JSON values, appended line by line, so that being killed loses nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from rvedit.io.errors import UserError


class Journal:
    """What was put is there in the next run, even if this one is killed; the last value of a key counts.

    A line goes to the system whole, in one write at the file's end. One that was torn all the same (a full
    disk, a power cut) is passed over on reading, and the next line starts on a fresh one. Held in memory as
    the lines' bytes, about 1 KB an answer.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: dict[str, bytes] = {}
        self._file: int | None = None
        self._torn = False
        try:
            content = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}): mend or move it") from None
        self._torn = bool(content) and not content.endswith(b"\n")
        for line in content.split(b"\n"):
            try:
                self._lines[json.loads(line)["key"]] = line
            except (ValueError, KeyError, TypeError):
                continue

    def get(self, key: str) -> Any:
        """The value, or None."""
        line = self._lines.get(key)
        return None if line is None else json.loads(line)["value"]

    def put(self, key: str, value: Any) -> None:
        """Remember; on return it has left this process. Raises UserError where the disk is full."""
        line = json.dumps({"key": key, "value": value}, ensure_ascii=False).encode()
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            rest = (b"\n" if self._torn else b"") + line + b"\n"
            self._torn = True
            while rest:  # a disk that fills up takes a part, and refuses only the next write
                rest = rest[os.write(self._file, rest) :]
            self._torn = False
        except OSError as error:
            reason = error.strerror
            raise UserError(
                f"{self.path}: cannot be written to ({reason}): make room or name another"
            ) from None
        self._lines[key] = line

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

"""An append-only file of JSON entries, one per line, that survives a kill."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from rvedit.io.errors import UserError


class EntryLog:
    """JSON objects by the value of one of their fields; the last entry of a key counts.

    Each line is written whole, in one write at the end of the file. A line that is incomplete all the same
    (full disk, power failure) is skipped on reading, and the next one starts on a new line. The lines are
    also held in memory.
    """

    def __init__(self, path: Path, key_field: str) -> None:
        self.path, self.key_field = path, key_field
        self._lines: dict[str, bytes] = {}
        self._file: int | None = None
        try:
            content = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}): repair or move it") from None
        self._torn = bool(content) and not content.endswith(b"\n")
        for line in content.split(b"\n"):
            try:
                self._lines[json.loads(line)[key_field]] = line
            except (ValueError, KeyError, TypeError):
                continue

    def entry(self, key: str) -> Any:
        """Return the last entry of a key, or None."""
        line = self._lines.get(key)
        return None if line is None else json.loads(line)

    def append(self, entry: dict[str, Any]) -> None:
        """Write an entry through to the operating system. Raises UserError if the disk is full."""
        line = json.dumps(entry, ensure_ascii=False).encode()
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            rest = (b"\n" if self._torn else b"") + line + b"\n"
            self._torn = True
            while rest:  # when the disk fills up, a write is cut short and only the next one fails
                rest = rest[os.write(self._file, rest) :]
            self._torn = False
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written to ({error.strerror}): make room or choose another folder; "
                "finished work is kept"
            ) from None
        self._lines[entry[self.key_field]] = line

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

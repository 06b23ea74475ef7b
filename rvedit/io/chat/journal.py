"""A journal of replies and measurements, as keys and JSON values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rvedit.io.journal import EntryLog


class Journal(EntryLog):
    """A key-value store on disk, which holds about 1 KB per reply in memory."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "key")

    def get(self, key: str) -> Any:
        """Return the value, or None."""
        entry = self.entry(key)
        return None if entry is None else entry["value"]

    def put(self, key: str, value: Any) -> None:
        """Write a value through to the operating system. Raises UserError if the disk is full."""
        self.append({"key": key, "value": value})

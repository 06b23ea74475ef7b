"""Names of the models and folders in figures and tables, given as NAME=PLACE."""

from __future__ import annotations

from pathlib import Path


def split_name(text: str) -> tuple[str | None, str]:
    """Return (NAME, PLACE) of `NAME=PLACE`, and (None, text) of a text without a name or an existing path.

    The name may contain `=`, the place may not: `L_s = 8=runs/ls8`.
    """
    name, separator, place = text.rpartition("=")
    return (name, place) if separator and name and not Path(text).exists() else (None, text)

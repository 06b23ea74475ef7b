"""Names of the models and folders in figures and tables, given as NAME=PLACE."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rvedit.io.errors import UserError


def split_name(text: str) -> tuple[str | None, str]:
    """Return (NAME, PLACE) of `NAME=PLACE`, and (None, text) of a text without a name or an existing path.

    The name may contain `=`, the place may not: `L_s = 8=runs/ls8`.
    """
    name, separator, place = text.rpartition("=")
    return (name, place) if separator and name and not Path(text).exists() else (None, text)


def named_folders(texts: Sequence[str]) -> dict[str, Path]:
    """Return name -> folder of `FOLDER` or `NAME=FOLDER`, in their order; a folder's own name is the default.

    Raises UserError for a folder that does not exist, or if two have the same name.
    """
    folders: dict[str, Path] = {}
    for text in texts:
        name, place = split_name(text)
        path = Path(place)
        if not path.is_dir():
            raise UserError(f"{text}: no such folder: name folders of edits, or NAME=FOLDER")
        name = name or path.resolve().name
        if name in folders:
            raise UserError(f"{text}: two folders are named {name}: write NAME=FOLDER")
        folders[name] = path
    return folders

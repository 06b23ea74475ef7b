"""Reference images of a dataset: files of their own, or bytes in the rows of parquet files."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from rvedit.io.clips import is_too_narrow
from rvedit.io.errors import UserError, reason_of
from rvedit.io.tables import read_bytes
from rvedit.io.temporary import atomic_path
from rvedit.io.video import probe

EXTRACTED = "reference_images"
"""Folder, beside the manifest, of the images that were bytes in parquet files."""
_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}


def extract_pictures(
    rows: Mapping[str, tuple[Path, int]], column: str, folder: Path
) -> dict[str, Path | str]:
    """Write the images of parquet rows, given by id, to `folder`.

    Return the path of each, or the reason why it cannot be read.
    """
    by_file: dict[Path, dict[int, str]] = {}
    for identity, (file, number) in rows.items():
        by_file.setdefault(file, {})[number] = identity
    results: dict[str, Path | str] = {}
    for file, ids in by_file.items():
        for number, data in read_bytes(file, column, ids):
            results[ids[number]] = _write(data, folder / ids[number]) if data else f"{column} is empty"
    return results


def why_unreadable(path: Path) -> str | None:
    """Return why a file is no image that can be read, or None if it is one."""
    try:
        info = probe(path)
    except UserError as error:
        return reason_of(error)
    if info.num_frames != 1:
        return f"{path}: has {info.num_frames} frames"
    return f"{path}: is too long and narrow" if is_too_narrow(info.height, info.width) else None


def _write(data: bytes, stem: Path) -> Path | str:
    """Write an image as it is, or as PNG if it has an uncommon format."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            suffix = _SUFFIXES.get(image.format or "")
            image.load()
            path = stem.with_name(f"{stem.name}{suffix or '.png'}")
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                if suffix:
                    temporary.write_bytes(data)
                else:
                    image.convert("RGB").save(temporary, "PNG")
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        return str(error)
    return why_unreadable(path) or path

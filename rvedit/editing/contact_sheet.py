"""A contact sheet: source and edit at several moments, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rvedit.io.errors import UserError
from rvedit.io.tiles import tiled
from rvedit.io.video import PICTURE_SUFFIXES, Frame, VideoInfo, VideoWriter

NUM_MOMENTS = 8
_COLUMNS, _WIDTH = 4, 320


def check_contact_sheet(path: Path, info: VideoInfo, overwrite: bool) -> None:
    """Raise UserError if the picture of a clip cannot be written there."""
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        raise UserError(f"`contact_sheet` {path}: give a picture's name, ending in .png or .jpg")
    _writer(path, info, overwrite)


def write_contact_sheet(
    path: Path, info: VideoInfo, moments: Sequence[tuple[float, Frame, Frame]], overwrite: bool = False
) -> None:
    """Write moments, each (time in seconds, source frame, edited frame), in rows of source above edit."""
    tiles: list[tuple[str, Frame | None]] = []
    for first in range(0, len(moments), _COLUMNS):
        row = moments[first : first + _COLUMNS]
        gap: list[tuple[str, Frame | None]] = [("", None)] * (min(_COLUMNS, len(moments)) - len(row))
        tiles += [(f"{seconds:.2f} s, source", source) for seconds, source, _ in row] + gap
        tiles += [(f"{seconds:.2f} s, edit", edited) for seconds, _, edited in row] + gap
    picture = tiled(tiles, _WIDTH, _COLUMNS)
    with _writer(path, info, overwrite, picture.shape[1], picture.shape[0]) as writer:
        writer.write(picture, 0)


def _writer(path: Path, info: VideoInfo, overwrite: bool, width: int = 1, height: int = 1) -> VideoWriter:
    still = replace(info.without_source(), num_frames=1)
    return VideoWriter(path, like=still, overwrite=overwrite, width=width, height=height)

"""Uploaded files: none is opened before its path and its content are checked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rvedit.io.errors import UserError
from rvedit.io.pages import jpeg_url
from rvedit.io.video import Frame, VideoReader, evenly_spaced, probe

_HEAD_BYTES = 1 << 20  # as much as FFmpeg looks at to recognize a format
_PLAYLIST = re.compile(rb"\A\s*(?:#EXTM3U|ffconcat)|<MPD[\s>]|\nc=IN IP", re.IGNORECASE)
_STRIP_FRAMES, _STRIP_HEIGHT = 8, 96
_CANVAS_SIDE = 800
"""Longest side in pixels of a frame that a mask is drawn on."""


def check_upload(path: str | Path, uploads: Path) -> Path:
    """Return the path of an uploaded file. Raises UserError for paths elsewhere, and for playlists.

    A playlist is text that names other files or addresses, which FFmpeg would open.
    """
    resolved = Path(path).resolve()
    if not resolved.is_relative_to(uploads.resolve()) or not resolved.is_file():
        raise UserError("the server does not have this upload (a restart removes uploads): upload it again")
    with resolved.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if _PLAYLIST.search(head.partition(b"\0")[0]):
        raise UserError(f"{resolved.name}: is a playlist, which names other files: upload the video itself")
    return resolved


def strip_of(path: Path) -> dict[str, Any]:
    """Return evenly spaced small pictures of a clip, as data URLs, with its length in seconds and its size.

    Raises UserError for a file that cannot be edited.
    """
    with VideoReader(path) as reader:
        info = reader.info
        chosen = set(evenly_spaced(info.num_frames, _STRIP_FRAMES))
        pictures = [_reduced(timed.frame, 4 * _STRIP_HEIGHT, _STRIP_HEIGHT) for timed in reader.pick(chosen)]
    return {
        "frames": [jpeg_url(picture, 80) for picture in pictures],
        "seconds": round(info.duration, 3),
        "num_frames": info.num_frames,
        "width": info.width,
        "height": info.height,
    }


def canvas_of(path: Path, moment: str | None) -> Frame:
    """Return the frame (h, w, 3) at a moment, as `--from` reads it, reduced, to draw a mask on."""
    from rvedit.editing.time_range import Moment

    with VideoReader(path) as reader:
        info, number = reader.info, 0
        if moment:
            parsed = Moment.parse("from", moment)
            number = int(parsed.value if parsed.is_frame else parsed.value * info.frame_rate)
        picked = reader.pick({min(number, info.num_frames - 1)})
        return np.asarray(_reduced(next(picked).frame, _CANVAS_SIDE, _CANVAS_SIDE))


def write_drawn_mask(layers: Sequence[NDArray[np.uint8]], clip: Path, path: Path) -> bool:
    """Write what was drawn, layers (h, w, 4), as a mask of the clip's size; return whether anything was."""
    drawn = [layer[..., 3] > 0 for layer in layers]
    if not any(layer.any() for layer in drawn):
        return False
    info = probe(clip)
    mask = Image.fromarray(np.where(np.any(drawn, axis=0), np.uint8(255), np.uint8(0)))
    mask.resize((info.width, info.height), Image.Resampling.NEAREST).save(path)
    return True


def _reduced(frame: Frame, width: int, height: int) -> Image.Image:
    image = Image.fromarray(frame)
    image.thumbnail((width, height))
    return image

"""Reading a manifest's clip pairs as training sees them: so many frames, of one size."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np

from rvedit.data.manifest import clip_path
from rvedit.errors import UserError
from rvedit.records import ClipShape, Triplet
from rvedit.video import Frame, VideoReader
from rvedit.video_tensors import Frames, resize_frames


def read_pair(manifest: Path, triplet: Triplet, shape: ClipShape) -> list[Frames]:
    """The first frames of source and target, scaled to cover the shape and cropped about their middle.

    Raises UserError that names the row where a file is gone, or has too few frames.
    """
    clips = []
    for side in ("source", "target"):
        path = clip_path(manifest, triplet, side)
        if not path.is_file():
            raise UserError(
                f"{manifest}: the {side} of {triplet.key} is gone: {path}: run `rvedit prepare` again"
            )
        with VideoReader(path) as reader:
            frames = _fitted(
                islice((timed.frame for timed in reader), shape.num_frames), shape.height, shape.width
            )
        if len(frames) < shape.num_frames:
            raise UserError(
                f"{manifest}: the {side} of {triplet.key} has {len(frames)} frames, not {shape.num_frames}: "
                "lower data.num_frames, or prepare the data with a higher --min-frames"
            )
        clips.append(frames)
    return clips


def _fitted(frames: Iterable[Frame], height: int, width: int) -> Frames:
    """Frames scaled to cover (height, width) and cropped about their middle."""
    fitted = []
    for frame in frames:
        h, w = frame.shape[:2]
        scale = max(height / h, width / w)
        rows, columns = max(height, round(h * scale)), max(width, round(w * scale))
        scaled = resize_frames(frame[None], rows, columns)
        top, left = (rows - height) // 2, (columns - width) // 2
        fitted.append(scaled[:, top : top + height, left : left + width])
    return np.concatenate(fitted) if fitted else np.empty((0, height, width, 3), np.uint8)

"""Reading a manifest's clip pairs as training sees them: so many frames, of one size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from rvedit.io.errors import UserError
from rvedit.io.frames import Frames, resize_frames
from rvedit.io.manifest import clip_path
from rvedit.io.records import ClipShape, Triplet
from rvedit.io.video import Frame, VideoReader


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


def fitting_bucket(shapes: Sequence[ClipShape], triplet: Triplet) -> int | None:
    """The bucket of a triplet: of those that its clips fill, the nearest in shape, and then the longest.

    A single bucket takes all: a clip that is too short for it is told by name where it is read. Shapes are
    compared by the logarithm of width over height, so that portrait and landscape are alike.
    """

    def distance(index: int) -> tuple[float, int]:
        shape = shapes[index]
        ratio = (triplet.width / triplet.height) / (shape.width / shape.height)
        return round(abs(math.log(ratio)), 6), -shape.num_frames

    if len(shapes) == 1:
        return 0
    filled = [i for i, shape in enumerate(shapes) if shape.num_frames <= triplet.num_frames]
    return min(filled, key=distance, default=None)

"""Read the clip pairs of a manifest for training: a fixed number of frames at a fixed size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from rvedit.io.errors import UserError, reason_of
from rvedit.io.frames import Frames, resize_frames
from rvedit.io.manifest import clip_path
from rvedit.io.records import ClipShape, Triplet
from rvedit.io.video import Frame, VideoReader, read_image

MAX_ASPECT = 100
"""Longest side of a reference image by its shortest."""


def is_too_narrow(height: int, width: int) -> bool:
    """Return whether a reference image is more than `MAX_ASPECT` times as long as wide."""
    return max(height, width) > MAX_ASPECT * min(height, width)


class UnreadableClip(UserError):
    """A clip of a manifest is missing, damaged or too short."""

    def __init__(self, message: str, path: Path):
        super().__init__(message)
        self.path = path


def read_pair(manifest: Path, triplet: Triplet, shape: ClipShape) -> list[Frames]:
    """Return the first frames of source and target, scaled to cover the shape and cropped at the center.

    Raises UnreadableClip if a file is missing, cannot be decoded or has too few frames.
    """
    clips = []
    for side in ("source", "target"):
        path = clip_path(manifest, triplet, side)
        if not path.exists():
            raise UnreadableClip(
                f"{manifest}: the {side} of {triplet.key} is missing: {path}: run `rvedit prepare` again",
                path,
            )
        try:
            with VideoReader(path) as reader:
                frames = [_crop_to_cover(timed.frame, shape) for timed in islice(reader, shape.num_frames)]
        except (FFmpegError, OSError, ValueError) as error:
            reason = reason_of(error).removeprefix(f"{path}: ")
            raise UnreadableClip(f"{path}: {reason}", path) from None
        if len(frames) < shape.num_frames:
            raise UnreadableClip(
                f"{manifest}: the {side} of {triplet.key} has {len(frames)} frames, not {shape.num_frames}: "
                "lower data.num_frames, or prepare the data with a higher `min_frames`",
                path,
            )
        clips.append(np.concatenate(frames))
    return clips


def read_mask(manifest: Path, triplet: Triplet, shape: ClipShape) -> NDArray[np.bool_]:
    """Return where the mask of a triplet is white, as (frames, height, width); a mask may be one image.

    Raises UnreadableClip.
    """
    path = clip_path(manifest, triplet, "mask")
    try:
        with VideoReader(path) as reader:
            frames = [_crop_to_cover(timed.frame, shape)[0] for timed in islice(reader, shape.num_frames)]
    except (UserError, FFmpegError, OSError, ValueError) as error:
        raise UnreadableClip(f"{path}: {reason_of(error).removeprefix(f'{path}: ')}", path) from None
    if len(frames) not in (1, shape.num_frames):
        raise UnreadableClip(f"{path}: has {len(frames)} frames, not {shape.num_frames} or one", path)
    masks = np.stack(frames).mean(axis=-1) > 127
    return np.broadcast_to(masks, (shape.num_frames, *masks.shape[1:]))


def read_reference_image(manifest: Path, triplet: Triplet) -> Frame:
    """Return a triplet's reference image. Raises UnreadableClip."""
    path = clip_path(manifest, triplet, "reference_image")
    try:
        image = read_image(path)
    except UserError as error:
        raise UnreadableClip(str(error), path) from None
    if is_too_narrow(*image.shape[:2]):
        raise UnreadableClip(f"{path}: is more than {MAX_ASPECT} times as long as wide: crop it", path)
    return image


def _crop_to_cover(frame: Frame, shape: ClipShape) -> Frames:
    """Return a frame (1, h, w, 3), scaled to cover the shape and cropped at the center."""
    h, w = frame.shape[:2]
    height, width = shape.height, shape.width
    scale = max(height / h, width / w)
    rows, columns = max(height, round(h * scale)), max(width, round(w * scale))
    scaled = resize_frames(frame[None], rows, columns)
    top, left = (rows - height) // 2, (columns - width) // 2
    return scaled[:, top : top + height, left : left + width]


def fitting_bucket(shapes: Sequence[ClipShape], triplet: Triplet) -> int | None:
    """Return the index of a triplet's bucket: nearest in aspect ratio, then longest, that its clips fill.

    None if the clips are too short for all. A single bucket takes every triplet: `read_pair` names clips that
    are too short. Aspect ratios are compared by logarithm, which treats portrait and landscape alike.
    """

    def distance(index: int) -> tuple[float, int]:
        shape = shapes[index]
        ratio = (triplet.width / triplet.height) / (shape.width / shape.height)
        return round(abs(math.log(ratio)), 6), -shape.num_frames

    if len(shapes) == 1:
        return 0
    possible = [i for i, shape in enumerate(shapes) if shape.num_frames <= triplet.num_frames]
    return min(possible, key=distance, default=None)

"""Types of a clip: frames, description, color tags, orientation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Interpolation
from numpy.typing import NDArray

from rvedit.io.video.clock import UNCHANGED, Clock

Frame: TypeAlias = NDArray[np.uint8]
"""One frame as displayed: h w 3, RGB, full range, upright."""
Frames: TypeAlias = NDArray[np.uint8]
"""Frames (t, h, w, 3), or one frame."""
Turn: TypeAlias = tuple[bool, bool, bool]
"""Whether to swap the axes, then to flip x, then to flip y."""

# ITU-T H.273 code points, as in FFmpeg.
RGB, UNSPECIFIED = 0, 2
BT709, BT601 = 1, 5
LIMITED, FULL = int(ColorRange.MPEG), int(ColorRange.JPEG)

# YUV matrices that swscale supports: the stream's code point to swscale's (a code point too).
MATRICES = {1: BT709, 4: 4, 5: BT601, 6: BT601, 7: 7, 9: 9, 10: 9}

# Without these flags swscale uses approximations that shift saturated colors by several levels.
SCALING = int(
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)


DEFAULT_RATE = Fraction(24)
"""Frames per second of folders of images, and of videos that state no rate."""


OVER_BLACK = "its transparent parts are shown over black"
"""The warning of a clip with transparency."""


class TruncatedError(Exception):
    """The clip's data end, or stop decoding, early; the message says how."""


class Lost(NamedTuple):
    """Frames that do not decode, in the place of the frames; `reason` is a clause."""

    reason: str
    num_frames: int = 1


class Crop(NamedTuple):
    """Pixels to cut off each side of a frame, before it is turned upright."""

    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0


NO_CROP = Crop()


class TimedFrame(NamedTuple):
    """A frame with its time and duration, both in ticks of the clip's `time_base`."""

    frame: Frame
    pts: int
    duration: int | None


@dataclass(frozen=True)
class VideoInfo:
    """Description of a clip, with all that `VideoWriter` copies to an edit of it.

    Width and height are in pixels as displayed (after cropping and rotation). `num_frames` counts the packets
    shown (files, for images and folders): exact for an intact file, an estimate for a damaged one. `duration`
    is in seconds, from the start of the first frame to the end of the last; a frame's time in seconds is
    pts * time_base. Color tags are H.273 code points. `crop`: what the container crops.

    `ends_early`: the file ends before its declared length. `truncated`: it does, or has damaged packets.
    `has_alpha`: the first frame is partly transparent; frames are composed over black. `is_interlaced`: the
    first frame is, and frames are deinterlaced. `clock` corrects the times of the file. `streams` describes
    each stream of a container, in one line; it is empty for images that are not in one, and for folders.
    """

    path: Path
    kind: Literal["video", "image", "folder"]
    width: int
    height: int
    num_frames: int
    frame_rate: Fraction
    time_base: Fraction
    duration: float
    color_range: int
    colorspace: int
    pix_fmt: str
    color_primaries: int = UNSPECIFIED
    color_trc: int = UNSPECIFIED
    pixel_aspect: Fraction | None = None
    has_audio: bool = False
    truncated: bool = False
    crop: Crop = NO_CROP
    ends_early: bool = False
    has_alpha: bool = False
    is_interlaced: bool = False
    clock: Clock = UNCHANGED
    streams: tuple[str, ...] = ()

    def without_source(self) -> VideoInfo:
        """Return the description of a clip that takes only times, size and colors from this one."""
        return replace(self, has_audio=False, has_alpha=False, streams=())

    @property
    def matrix(self) -> int:
        """Return swscale's code point of the YUV matrix of the clip, tagged or assumed."""
        return yuv_matrix(self.colorspace, self.width, self.height)


def yuv_matrix(colorspace: int, width: int, height: int) -> int:
    """Return swscale's matrix for a code point.

    For unsupported code points return what players assume: BT.709 from 720 lines up, BT.601 below. Lines are
    counted on the short side, so that rotating a clip does not change its colors.
    """
    return MATRICES.get(colorspace, BT709 if min(width, height) >= 720 else BT601)


def orientation(decoded: VideoFrame) -> Turn:
    """Return how to turn a frame upright, from its display matrix.

    The matrix maps a pixel (x, y) to (a x + c y, b x + d y); other angles, which no camera writes, are
    rounded to the nearest quarter turn.
    """
    side_data: Any = decoded.side_data
    data = side_data.get("DISPLAYMATRIX")
    if data is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, c < 0, b < 0
    return False, a < 0, d < 0


def side_by_side(a: Frame, b: Frame) -> Frame:
    """Return one frame (h wa+2+wb 3) with `a` left and `b` right of a thin white line.

    Raises ValueError if the heights differ.
    """
    if a.shape[0] != b.shape[0]:
        raise ValueError(f"frames are {a.shape[0]} and {b.shape[0]} lines high: give equal heights")
    # Two pixels, so that two frames of equal width make an even width.
    line = np.full((a.shape[0], 2, 3), 255, np.uint8)
    return np.concatenate([a, line, b], axis=1)


def evenly_spaced(num_frames: int, count: int) -> list[int]:
    """Return the indices of `count` frames from the first to the last, or of all if there are fewer."""
    if num_frames <= count:
        return list(range(num_frames))
    if count == 1:
        return [(num_frames - 1) // 2]
    return [round(index * (num_frames - 1) / (count - 1)) for index in range(count)]

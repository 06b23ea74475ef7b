"""What a clip is: its frames, its description and the meaning of its colour tags."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from av.video.reformatter import ColorRange, Interpolation
from numpy.typing import NDArray

Frame: TypeAlias = NDArray[np.uint8]
"""One picture as displayed: h w 3, RGB, full range, upright."""

# ITU-T H.273 code points, as FFmpeg counts them.
RGB, UNSPECIFIED = 0, 2
BT709, BT601 = 1, 5
LIMITED, FULL = int(ColorRange.MPEG), int(ColorRange.JPEG)

# The matrices swscale knows, from the stream's code point to swscale's (which is a code point too).
MATRICES = {1: BT709, 4: 4, 5: BT601, 6: BT601, 7: 7, 9: 9, 10: 9}

# Without these flags swscale takes shortcuts that shift saturated colours by several levels.
SCALING = int(
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)


class TimedFrame(NamedTuple):
    """A frame, when it is shown and for how long; both times in ticks of the clip's `time_base`."""

    frame: Frame
    pts: int
    duration: int | None


@dataclass(frozen=True)
class VideoInfo:
    """What a clip says of itself: all that a writer needs to make its twin.

    Width and height are pixels as displayed (after rotation). `num_frames` counts the packets that are
    shown (pictures, for stills and folders): exact for an intact file, an estimate for a broken one.
    `duration` is in seconds, from the first frame's start to the last one's end; a frame's time in
    seconds is pts * time_base. Colour tags are H.273 code points. `truncated` says that the file ends,
    or that its packets break, before the length it declares.
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
    color_primaries: int
    color_trc: int
    pix_fmt: str
    pixel_aspect: Fraction | None = None
    has_audio: bool = False
    truncated: bool = False

    @property
    def matrix(self) -> int:
        """The YUV matrix, as swscale numbers it, that the clip's frames are, or would be, coded with.

        A clip that names none is read as players read it: BT.709 from 720 lines up (counted on the
        short side, so that turning a clip does not change its colours), BT.601 below.
        """
        return yuv_matrix(self.colorspace, self.width, self.height)


def yuv_matrix(colorspace: int, width: int, height: int) -> int:
    """The swscale matrix for a code point; for those without one, what players assume at that size."""
    return MATRICES.get(colorspace, BT709 if min(width, height) >= 720 else BT601)


def side_by_side(a: Frame, b: Frame) -> Frame:
    """Two frames of equal height in one, `a` left and `b` right of a thin white line: h wa+2+wb 3.

    Raises ValueError where the heights differ.
    """
    if a.shape[0] != b.shape[0]:
        raise ValueError(f"frames {a.shape[0]} and {b.shape[0]} lines high do not go side by side")
    # Two pixels, so that two frames of one width always make an even width.
    line = np.full((a.shape[0], 2, 3), 255, np.uint8)
    return np.concatenate([a, line, b], axis=1)

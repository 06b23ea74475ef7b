"""Which way up a clip is shown."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from av.video.frame import VideoFrame

Turn: TypeAlias = tuple[bool, bool, bool]
"""Swap the axes, then flip x, then flip y."""


def orientation(decoded: VideoFrame) -> Turn:
    """How to turn a frame upright.

    From the display matrix, which maps a pixel (x, y) to (a x + c y, b x + d y); a slant, which no
    camera writes, is taken for the nearest quarter turn.
    """
    side_data: Any = decoded.side_data
    data = side_data.get("DISPLAYMATRIX")
    if data is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, c < 0, b < 0
    return False, a < 0, d < 0

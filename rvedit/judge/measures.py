"""Exact measures of an edit whose target is known, as in the playground.

All take uint8 clips (t, h, w, 3) of equal shape.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rvedit.data.playground import Frames

Mask = NDArray[np.bool_]
SUCCESS_GAIN = 0.5
"""An edit that removes more than half of the source's error is called a success."""


def _squared_error(a: Frames, b: Frames, where: Mask) -> float:
    difference = (a.astype(np.float32) - b.astype(np.float32)) / 255
    return float(np.square(difference[where]).mean())


def edit_gain(source: Frames, output: Frames, target: Frames, region: Mask) -> float:
    """1 - MSE(output, target) / MSE(source, target) in the edited region (t, h, w).

    1 is the target itself, 0 the untouched source, and below 0 worse than doing nothing.
    """
    return 1 - _squared_error(output, target, region) / _squared_error(source, target, region)


def preservation(output: Frames, target: Frames, region: Mask) -> float | None:
    """PSNR outside the edited region, in dB; none where the edit covers everything, capped at 60."""
    if region.all():
        return None
    return float(-10 * np.log10(max(_squared_error(output, target, ~region), 1e-6)))


def flicker(clip: Frames) -> float:
    """Mean absolute difference between neighbouring frames, in [0, 1]; 0 for a single frame.

    Things move, so only the ratio to the target's own says something.
    """
    if len(clip) < 2:
        return 0.0
    return float(np.abs(np.diff(clip.astype(np.float32), axis=0)).mean() / 255)

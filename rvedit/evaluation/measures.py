"""Exact measures of an edit whose target is known, as in the playground.

All take uint8 clips (t, h, w, 3) of equal shape.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rvedit.playground.world import Frames

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


def psnr(output: Frames, target: Frames) -> float:
    """Peak signal-to-noise ratio over a clip, in dB; capped at 60."""
    return float(-10 * np.log10(max(_squared_error(output, target, np.ones(target.shape[:3], bool)), 1e-6)))


def ssim(output: Frames, target: Frames) -> float:
    """Structural similarity of luma, mean over pixels and frames; 1 for equal clips.

    Wang et al., "Image Quality Assessment" (2004): Gaussian windows of 11 pixels and sigma 1.5, K1 0.01 and
    K2 0.03, borders of 5 pixels left out.
    """
    distance = np.arange(-5, 6)
    kernel = np.exp(-(distance**2) / (2 * 1.5**2))
    kernel /= kernel.sum()

    def smooth(x: NDArray[np.float64]) -> NDArray[np.float64]:
        for axis in (0, 1):
            windows = np.lib.stride_tricks.sliding_window_view(x, 11, axis=axis)
            x = windows @ kernel
        return x

    values = []
    for frames in zip(output, target, strict=True):
        a, b = (frame @ np.array([0.299, 0.587, 0.114]) for frame in frames)
        mean_a, mean_b = smooth(a), smooth(b)
        spread_a, spread_b = smooth(a * a) - mean_a**2, smooth(b * b) - mean_b**2
        both = smooth(a * b) - mean_a * mean_b
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        likeness = (2 * mean_a * mean_b + c1) * (2 * both + c2)
        likeness /= (mean_a**2 + mean_b**2 + c1) * (spread_a + spread_b + c2)
        values.append(likeness.mean())
    return float(np.mean(values))


def change_error(output: Frames, target: Frames) -> float:
    """Mean absolute error of the changes from frame to frame, in grey levels; 0 for a single frame."""
    if len(output) < 2:
        return 0.0
    changes = (np.diff(clip.astype(np.float32), axis=0) for clip in (output, target))
    return float(np.abs(next(changes) - next(changes)).mean())

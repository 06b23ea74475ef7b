"""Exact metrics of an edit whose target is known, as in the playground.

Unless they say otherwise, functions take uint8 clips (t, h, w, 3) of equal shape.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvedit.io.video.clip import Frames

Mask = NDArray[np.bool_]
Levels = NDArray[np.floating[Any]]
SUCCESS_GAIN = 0.5
"""An edit whose gain exceeds this, so removes more than half of the source's error, counts as a success."""


def _mse(a: Frames, b: Frames, region: Mask) -> float:
    difference = (a.astype(np.float32) - b.astype(np.float32)) / 255
    return float(np.square(difference[region]).mean())


def decibels(error: float | np.floating) -> float:
    """Return the PSNR, at most 60 dB, for a mean squared error of values in [0, 1]."""
    return float(-10 * np.log10(max(error, 1e-6)))


def edit_gain(source: Frames, output: Frames, target: Frames, region: Mask) -> float:
    """Return 1 - MSE(output, target) / MSE(source, target) in the edited region (t, h, w).

    1 is the target itself, 0 the unedited source, and less than 0 is worse than no edit.
    """
    return 1 - _mse(output, target, region) / _mse(source, target, region)


def preservation(output: Frames, target: Frames, region: Mask) -> float | None:
    """Return the PSNR outside the edited region in dB, at most 60; None if the region is the whole clip."""
    if region.all():
        return None
    return decibels(_mse(output, target, ~region))


def changes(clip: Frames) -> NDArray[np.float32]:
    """Return the differences of consecutive frames, in levels of -255 to 255; 0 for a single frame."""
    frames = clip.astype(np.float32)
    return np.diff(frames, axis=0) if len(clip) > 1 else np.zeros_like(frames)


def flicker(clip: Frames) -> float:
    """Return the mean absolute difference of consecutive frames, in [0, 1]; 0 for a single frame.

    Motion counts as well, so compare it with the target's own flicker.
    """
    return float(np.abs(changes(clip)).mean() / 255)


def psnr(output: Frames, target: Frames) -> float:
    """Return the peak signal-to-noise ratio of a clip in dB, at most 60."""
    return decibels(_mse(output, target, np.ones(target.shape[:3], bool)))


def ssim_map(a: Levels, b: Levels, smooth: Callable[[Levels], Levels]) -> Levels:
    """Return the structural similarity at each pixel of two images of luma (h, w), levels of 0 to 255.

    Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity" (2004), with
    K1 = 0.01 and K2 = 0.03; `smooth` is their Gaussian window of 11 pixels and sigma 1.5.
    """
    mean_a, mean_b = smooth(a), smooth(b)
    var_a, var_b = smooth(a * a) - mean_a**2, smooth(b * b) - mean_b**2
    covariance = smooth(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return similarity / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))


def ssim(output: Frames, target: Frames) -> float:
    """Return the structural similarity of luma, mean over pixels and frames; 1 for equal clips.

    It is that of `ssim_map`, without the 5 pixels at each border.
    """
    from scipy.ndimage import gaussian_filter

    smooth = partial(gaussian_filter, sigma=1.5, radius=5)
    values = []
    for frames in zip(output, target, strict=True):
        a, b = (frame @ np.array([0.299, 0.587, 0.114]) for frame in frames)
        values.append(ssim_map(a, b, smooth)[5:-5, 5:-5].mean())
    return float(np.mean(values))


def change_error(output: Frames, target: Frames) -> float:
    """Return the mean absolute error of the changes between frames, in levels of 0 to 255."""
    return float(np.abs(changes(output) - changes(target)).mean())

"""Noise that the frames of a clip share (PYoCo, arXiv:2305.10474)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def mix_shared_noise(
    noise: Float[Tensor, "*b c f h w"], shared: Float[Tensor, "*b c 1 h w"], ratio: float
) -> Float[Tensor, "*b c f h w"]:
    """Return noise of unit variance of which `ratio` is common to all frames: PYoCo's mixed noise.

    The model's errors depend on its noise: errors that all frames share do not flicker.
    """
    return float((1 - ratio) ** 0.5) * noise + float(ratio**0.5) * shared if ratio else noise

"""Initial noise that is correlated between frames (PYoCo, arXiv:2305.10474)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def mix_shared_noise(
    noise: Float[Tensor, "*b c f h w"], shared: Float[Tensor, "*b c 1 h w"], ratio: float
) -> Float[Tensor, "*b c f h w"]:
    """Return PYoCo's mixed noise: unit variance, of which the share `ratio` is common to all frames.

    The model's errors depend on the noise, and errors common to all frames do not flicker.
    """
    return float((1 - ratio) ** 0.5) * noise + float(ratio**0.5) * shared if ratio else noise

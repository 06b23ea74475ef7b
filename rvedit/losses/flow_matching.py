"""Flow matching in Wan's convention: t = 1 is noise, t = 0 the target."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def shift_time(t: Float[Tensor, " b"], shift: float) -> Float[Tensor, " b"]:
    """Move uniform times towards noise: t' = s t / (1 + (s - 1) t)."""
    return shift * t / (1 + (shift - 1) * t)


def interpolate(
    target: Float[Tensor, "b c f h w"], noise: Float[Tensor, "b c f h w"], t: Float[Tensor, " b"]
) -> Float[Tensor, "b c f h w"]:
    """x_t = (1 - t) x_1 + t eps, with x_1 the latents of the edited clip (Alg. 1, line 6)."""
    weight = t[:, None, None, None, None]
    return (1 - weight) * target + weight * noise


def flow_matching_loss(
    velocity: Float[Tensor, "b c f h w"],
    target: Float[Tensor, "b c f h w"],
    noise: Float[Tensor, "b c f h w"],
) -> Float[Tensor, ""]:
    """L_fm: mean squared distance to u* = eps - x_1 (Alg. 1, line 8)."""
    return (velocity.float() - (noise - target)).square().mean()

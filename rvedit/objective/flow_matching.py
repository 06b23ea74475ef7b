"""Flow matching in Wan's convention: t = 1 is noise, t = 0 the target."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

CHANGED_RMS = 0.3
"""Latents of the VAE have unit variance over a corpus; what an edit left differs by less, through receptive fields."""


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
    weight: Float[Tensor, "b 1 f h w"] | None = None,
) -> Float[Tensor, ""]:
    """L_fm: mean squared distance to u* = eps - x_1 (Alg. 1, line 8), of each place by its weight if given."""
    error = (velocity.float() - (noise - target)).square()
    return (error if weight is None else weight * error).mean()


def edit_weight(
    source: Float[Tensor, "b c f h w"], target: Float[Tensor, "b c f h w"], extra: float
) -> Float[Tensor, "b 1 f h w"]:
    """1 where the edit left the latents, 1 + extra where it changed them, over each clip's mean.

    Most of a clip is to be copied, which is learned early; this turns the loss to what is left to learn. The
    mean keeps clips equal: a style edit, which changes everything, counts as without weights.
    """
    changed = (target - source).square().mean(dim=1, keepdim=True).sqrt() > CHANGED_RMS
    weight = 1 + extra * changed.to(target.dtype)
    return weight / weight.mean(dim=(1, 2, 3, 4), keepdim=True)

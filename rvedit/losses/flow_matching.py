"""Flow matching in Wan's convention: t = 1 is noise, t = 0 is the target."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def shift_time(t: Float[Tensor, " b"], shift: float) -> Float[Tensor, " b"]:
    """Return t' = s t / (1 + (s - 1) t): for s > 1, times closer to noise."""
    return shift * t / (1 + (shift - 1) * t)


def interpolate(
    target: Float[Tensor, "b c f y x"], noise: Float[Tensor, "b c f y x"], t: Float[Tensor, " b"]
) -> Float[Tensor, "b c f y x"]:
    """Return x_t = (1 - t) x_1 + t eps (Alg. 1, line 6).

    x_1 is the paper's name for the target, the latents of the edited clip; it is x_t at t = 0.
    """
    weight = t[:, None, None, None, None]
    return (1 - weight) * target + weight * noise


def flow_matching_loss(
    velocity: Float[Tensor, "b c f y x"],
    target: Float[Tensor, "b c f y x"],
    noise: Float[Tensor, "b c f y x"],
    weights: Float[Tensor, "b 1 f y x"] | None = None,
) -> Float[Tensor, " b"]:
    """Return L_fm of each sample: the mean squared error to u* = eps - x_1 (Alg. 1, line 8).

    With `weights`, the errors of each sample are weighted; the weights are divided by their mean.
    """
    errors = (velocity.float() - (noise - target)).square()
    if weights is not None:
        errors = errors * (weights / weights.mean(dim=(1, 2, 3, 4), keepdim=True))
    return errors.mean(dim=(1, 2, 3, 4))

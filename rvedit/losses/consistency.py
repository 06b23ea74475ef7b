"""Phased consistency in the form of velocities, which distills a model into one of few denoising steps.

The student's steps divide the time from noise (t = 1) to target (t = 0) into phases, and in each phase it
learns to jump from any point to the phase's end (Wang et al., "Phased Consistency Models", 2024).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
"""A model: (x_t, t) -> velocity."""


def phase_times(
    uniform: Float[Tensor, " b"], boundaries: Float[Tensor, " k"], substeps: int
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Return times t, r and e of samples: a point, the teacher's next point, and the end of the phase.

    `boundaries` are the student's times from 1 to 0, and each phase has `substeps` equal steps of the
    teacher; `uniform` in [0, 1) chooses the phase and the step.
    """
    phases = len(boundaries) - 1
    index = (uniform * phases * substeps).long().clamp(max=phases * substeps - 1)
    phase, step = index // substeps, index % substeps
    begin, end = boundaries[phase], boundaries[phase + 1]
    t, r = (begin + (end - begin) * number / substeps for number in (step, step + 1))
    return t, torch.where(step == substeps - 1, end, r), end


def consistency_loss(
    student: Velocity,
    teacher: Velocity,
    noisy: Float[Tensor, "b c f y x"],
    t: Float[Tensor, " b"],
    r: Float[Tensor, " b"],
    e: Float[Tensor, " b"],
) -> Float[Tensor, ""]:
    """Return the mean squared error of the student's velocity at x_t to that of a consistent jump to e.

    A consistent jump is the teacher's step from t to r, and the student's own jump from r to e. Its velocity
    is the mean of both, by time. The target has no gradient, and needs no average of the student's weights
    (Song and Dhariwal, "Improved Techniques for Training Consistency Models", 2024).
    """

    def wide(x: Tensor) -> Tensor:
        return x[:, None, None, None, None]

    with torch.no_grad():
        first = teacher(noisy, t).float()
        later = student(noisy + wide(r - t) * first, r).float()
        share = wide((t - r) / (t - e))
        target = share * first + (1 - share) * later
    return (student(noisy, t).float() - target).square().mean()

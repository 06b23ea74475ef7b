"""Schedules that a user chooses: a shift, or the noise levels themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from rvedit.pipelines.sigmas import check_sigmas


def set_sigmas(
    scheduler: FlowMatchEulerDiscreteScheduler, sigmas: Sequence[float], shift: float, device: torch.device
) -> None:
    """Set a scheduler's timesteps with a shift of its own for this once; it appends a sigma of 0."""
    own = scheduler.shift
    scheduler.set_shift(shift)
    scheduler.set_timesteps(sigmas=list(sigmas), device=device)
    scheduler.set_shift(own)


class GivenSigmas(FlowMatchEulerDiscreteScheduler):
    """Euler steps between given noise levels, for any number of steps that a pipeline asks for."""

    def __init__(self, sigmas: Sequence[float]) -> None:
        super().__init__()  # a shift of 1
        self.given = list(sigmas)

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: str | torch.device | None = None, **_: Any
    ) -> None:
        """Set the given sigmas."""
        super().set_timesteps(sigmas=self.given, device=device)


@contextmanager
def scheduler_with(pipe: Any, shift: float | None, sigmas: Sequence[float] | None) -> Iterator[None]:
    """Replace a pipeline's scheduler by one with another shift, or by `GivenSigmas`, within the context.

    For diffusers' pipelines, which take a number of steps only.
    """
    own = pipe.scheduler
    if sigmas is not None:
        pipe.scheduler = GivenSigmas(check_sigmas(sigmas))
    elif shift is not None:
        name = "shift" if isinstance(own, FlowMatchEulerDiscreteScheduler) else "flow_shift"
        pipe.scheduler = type(own).from_config(own.config, **{name: shift})
    try:
        yield
    finally:
        pipe.scheduler = own

"""Callbacks after each denoising step: one for a pipeline, made of several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from rvedit.editing.mask import StepCallback

StepReport = Callable[[int, int], None]
"""Callback: (step, counted from 1; number of steps)."""


def step_callback(report: StepReport, *callbacks: StepCallback | None) -> StepCallback:
    """Return a `callback_on_step_end` of a pipeline that reports each step and calls other callbacks."""

    def on_step_end(pipe: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        report(step + 1, pipe.num_timesteps)
        for callback in callbacks:
            if callback is not None:
                tensors = {**tensors, **(callback(pipe, step, timestep, tensors) or {})}
        return tensors

    return on_step_end

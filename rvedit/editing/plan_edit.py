"""The plan of one edit on a device of this machine, or on a GPU that it does not have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rvedit.editing.memory_plan import (
    EditPlan,
    EditPlanOptions,
    Planner,
    find_fitting_plan,
    matrix_rate,
)
from rvedit.io.records import ClipShape
from rvedit.io.video import VideoInfo
from rvedit.pipelines.loading import DTYPES, pick_device, pick_dtype
from rvedit.pipelines.memory import choose_offload, free_bytes

CARD_RATE = 1e14
"""Assumed FLOP/s of matrix products on a GPU that this machine does not have."""


@dataclass(frozen=True)
class PlannedEdit:
    """A plan with its time on a device."""

    plan: EditPlan
    device: str
    rate: float
    """FLOP/s of matrix products."""
    fitting: EditPlan | None
    """The plan with the options that fit the GPU that was asked for, if there are any."""

    @property
    def seconds(self) -> tuple[float, float]:
        """Return the seconds of a step and in total."""
        return self.plan.seconds(self.rate)


def plan_edit(
    info: VideoInfo,
    model: str,
    device: str | None,
    dtype: str | None,
    options: Mapping[str, Any],
    card: float | None = None,
) -> PlannedEdit:
    """Plan an edit of a clip on `device`, or on a GPU of `card` GB of memory; loads no weights.

    `options` are fields of `EditPlanOptions`.
    """
    place = pick_device(device)
    # For a GPU the dtype is a GPU's default, even if this machine has none.
    torch_dtype = DTYPES["bf16"] if card and not dtype else pick_dtype(dtype, place)
    planner = Planner(ClipShape(info.num_frames, info.height, info.width), model)
    plan_options = EditPlanOptions(torch_dtype, **options)
    plan = planner(plan_options)
    if plan_options.offload == "auto":
        # For a GPU the plan without options is shown next to the one that fits.
        memory = float("inf") if card else free_bytes(place)
        plan_options = replace(plan_options, offload=choose_offload(sum(plan.weights.values()), memory))
        plan = planner(plan_options)
    fitting = find_fitting_plan(planner, plan_options, card * 1e9) if card else None
    rate = CARD_RATE if card else matrix_rate(place, torch_dtype)
    return PlannedEdit(plan, str(place), rate, fitting)

"""Limits of a run: how a batch can be divided, and how many updates and clips may be skipped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from rvedit.io.errors import UserError
from rvedit.training.recipe import Recipe
from rvedit.training.state import RunState, last_checkpoint_before

MAX_SKIPPED_IN_A_ROW = 10
"""Single batches may overflow; so many in a row mean that the weights are spoiled."""
_NAMED_CLIPS = 20


def clips_at_once(recipe: Recipe, processes: int) -> int:
    """Return the clips in one forward pass of a process. Raises UserError if the batch cannot be divided."""
    shared = recipe.context_parallel
    at_once, left = divmod(processes, shared)
    if left:
        raise UserError(f"context_parallel is {shared}: it must divide {processes} processes")
    clips, rest = divmod(recipe.batch_size, max(1, at_once * recipe.accumulation))
    if processes < 1 or rest:
        divided = " / context_parallel" if shared > 1 else ""
        raise UserError(
            f"batch_size is {recipe.batch_size}: it must be a multiple of processes{divided} x accumulation, "
            f"{at_once} x {recipe.accumulation}"
        )
    return clips


def check_skipped(folder: Path, state: RunState, recipe: Recipe) -> None:
    """Raise UserError if too many updates were skipped, in all or in a row, or the last one of the run.

    The checkpoint that it names is older than the first update skipped in a row: those weights gave a finite
    loss.
    """
    first = state.step - state.skipped_in_a_row
    is_spoiled = state.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW
    if state.skipped > recipe.max_skipped:
        problem = (
            f"the loss was not finite in {state.skipped} steps, the last of them {state.step - 1}: lower "
            "optimizer.learning_rate or raise max_skipped"
        )
    elif is_spoiled or (state.skipped_in_a_row and state.step == recipe.steps):
        problem = f"the loss or its gradient is not finite since step {first}: lower optimizer.learning_rate"
    else:
        return
    good = last_checkpoint_before(folder, first)
    remedy = (
        f"the last good checkpoint is {good}: remove newer ones to resume from it"
        if good
        else "there is no good checkpoint: start over with `fresh`"
    )
    raise UserError(f"{folder}: {problem}; {remedy}")


def check_unreadable(folder: Path, state: RunState, reasons: Mapping[str, str], limit: int) -> None:
    """Raise UserError if more clips than `limit` cannot be read; `reasons` are those of this step's clips."""
    if reasons and len(state.unreadable) > limit:
        raise too_many_unreadable(folder, state.unreadable, [*reasons.values()][-1])


def too_many_unreadable(where: Path, paths: Iterable[str], reason: str) -> UserError:
    """Return the error of a run or manifest with too many unreadable clips, the last one for the reason."""
    paths = [*paths]
    names = ", ".join(paths[:_NAMED_CLIPS])
    more = f" and {len(paths) - _NAMED_CLIPS} more" if len(paths) > _NAMED_CLIPS else ""
    return UserError(
        f"{where}: clips cannot be read, too many for data.max_unreadable: {names}{more}; the last: {reason}"
    )

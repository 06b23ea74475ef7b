"""Tables of `rvedit edit --plan` and `rvedit train --dry-run`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from rvedit.io.errors import UserError
from rvedit_cli import console
from rvedit_cli.main import with_flags

if TYPE_CHECKING:
    from rvedit.io.video import VideoInfo
    from rvedit.training.plan import TrainingPlan


def print_edit_plan(
    info: VideoInfo,
    model: str,
    device: str | None,
    dtype: str | None,
    options: Mapping[str, Any],
    card: float | None,
    as_json: bool,
) -> None:
    """Plan an edit of a clip, and print its memory and time on `device`, or as one JSON object.

    With `card`, the GB of a GPU's memory, print the time on such a GPU and the options that fit it.
    """
    from rvedit.editing.plan_edit import CARD_RATE, plan_edit

    planned = plan_edit(info, model, device, dtype, options, card)
    plan, fitting, seconds = planned.plan, planned.fitting, planned.seconds
    if as_json:
        console.print_json(
            {
                "plan": plan.as_json(),
                "seconds": seconds,
                "matrix_flops_per_second": planned.rate,
                "fits": fitting and fitting.as_json(),
            }
        )
        return
    rows, columns = plan.size
    windows = f"{plan.windows} window{'s' * (plan.windows > 1)} of {plan.steps} steps"
    typer.echo(f"{windows} at {columns}x{rows} with {plan.options.words}; nothing was loaded")
    _size_table("weights", plan.weights, sum(plan.weights.values()))
    _size_table("additional memory by stage", {stage.name: stage.work for stage in plan.stages})
    host = "" if planned.device == "cpu" and not card else f", {size(plan.host_bytes)} of host memory"
    typer.echo(f"peak: {size(plan.device_bytes)} on the device{host}")
    machine = f"a GPU of {flops(CARD_RATE)}/s" if card else planned.device
    typer.echo(f"estimated time on {machine}: {seconds[0]:.3g} s per step, {seconds[1]:.3g} s in total")
    if fitting:
        typer.echo(f"a GPU of {card:g} GB: {fitting.options.words} ({size(fitting.device_bytes)})")
    elif card:
        typer.echo(f"no options fit a GPU of {card:g} GB: use a smaller clip or a larger GPU")


@contextmanager
def suggestions_if_out_of_memory(
    info: VideoInfo, model: str, device: str | None, dtype: str | None, options: Mapping[str, Any]
) -> Iterator[None]:
    """Raise UserError with the options that would fit if a device runs out of memory."""
    try:
        yield
    except Exception as error:
        if not console.is_out_of_memory(error):
            raise
        from rvedit.editing.memory_plan import EditPlanOptions, suggest_options
        from rvedit.io.records import ClipShape
        from rvedit.pipelines.loading import pick_device, pick_dtype
        from rvedit.pipelines.memory import usable_bytes

        place = pick_device(device)
        clip = ClipShape(info.num_frames, info.height, info.width)
        plan_options = EditPlanOptions(pick_dtype(dtype, place), **options)
        advice = suggest_options(clip, model, plan_options, usable_bytes(place))
        raise UserError(f"{model}: out of memory on {place}: {advice}") from error


def print_plan(plan: TrainingPlan, as_json: bool = False) -> None:
    """Print the tables of a training plan, or one JSON object."""
    if as_json:
        console.print_json(plan.as_json())
        return
    gpus = f"{plan.gpus} GPU{'s' * (plan.gpus > 1)}"
    batch = f"{plan.clips_at_once} clip{'s' * (plan.clips_at_once > 1)} per GPU"
    parallel = f", {plan.parallel}" if plan.gpus > 1 else ""
    typer.echo(
        f"{plan.recipe}: {plan.task} of {plan.preset} on {gpus}{parallel}, {batch}; nothing was started"
    )
    _print_parameters(plan)
    _print_tokens(plan)
    _print_compute(plan)
    _print_memory(plan)
    _print_shapes(plan)
    _size_table("disk", plan.disk)
    for note in plan.notes:
        typer.echo(note)


def _print_parameters(plan: TrainingPlan) -> None:
    rows = [(group.name, f"{group.trained:,}", f"{group.frozen:,}") for group in plan.parameters]
    totals = (sum(g.trained for g in plan.parameters), sum(g.frozen for g in plan.parameters))
    _table("parameters", ("", "trained", "frozen"), [*rows, ("total", *(f"{total:,}" for total in totals))])


def _print_tokens(plan: TrainingPlan) -> None:
    tokens = plan.tokens
    if tokens is None:
        return
    pairs, rows, columns = tokens.patches
    counts = {
        "noisy latents (S)": tokens.sequence,
        "editing tokens X_e (K)": tokens.edit,
        "visual tokens X_v": tokens.visual,
        "text tokens X_l": tokens.text,
        "frames in the MLLM": tokens.seen_frames,
        f"patches of those frames, {pairs} x {rows} x {columns}": pairs * rows * columns,
        "positions in the language tower": tokens.language,
    }
    _table("tokens per clip", ("", "number"), [(name, f"{count:,}") for name, count in counts.items()])


def _print_compute(plan: TrainingPlan) -> None:
    compute = plan.compute
    total = sum(compute.per_clip.values())
    parts = {name: value for name, value in compute.per_clip.items() if value}
    rows = [(name, flops(value), f"{value / total:.1%}") for name, value in parts.items()]
    rows += [("per clip", flops(total), ""), ("per optimizer step", flops(compute.per_step), "")]
    rows += [("whole run", flops(compute.per_run), f"{compute.hours:,.3g} h")]
    _table("compute", ("", "FLOP", "share"), rows)


def _print_memory(plan: TrainingPlan) -> None:
    memory = plan.memory
    parts = {name: value for name, value in memory.parts.items() if value}
    _size_table("memory per GPU", parts, memory.total)
    if memory.with_checkpointing != memory.without_checkpointing:
        typer.echo(
            f"with gradient checkpointing {size(memory.with_checkpointing)}, "
            f"without {size(memory.without_checkpointing)}"
        )
    budget = size(memory.budget)
    if memory.fits:
        typer.echo(f"fits: {size(memory.total)} of {budget}")
        return
    typer.echo(f"DOES NOT FIT: {size(memory.total)} of {budget}; these would fit:")
    for remedy in memory.remedies:
        typer.echo(f"  {with_flags(remedy)}")


def _print_shapes(plan: TrainingPlan) -> None:
    if not plan.shapes:
        return
    rows = [
        (
            row.shape,
            size(row.weights),
            size(row.activations),
            size(row.weights + row.activations),
            f"{row.smallest_gpu} GB" if row.smallest_gpu else "none",
        )
        for row in plan.shapes
    ]
    _table("memory by shape", ("", "weights", "activations", "total", "smallest GPU"), rows)


def _size_table(title: str, sizes: Mapping[str, float], total: float | None = None) -> None:
    rows = [(name, size(value)) for name, value in sizes.items()]
    _table(title, ("", "size"), rows if total is None else [*rows, ("total", size(total))])


def _table(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    first, *others = headers
    columns = [Column(first, no_wrap=True), *(Column(name, justify="right", no_wrap=True) for name in others)]
    table = Table(*columns, title=title, title_justify="left", box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    Console().print("", table, sep="\n")


def size(count: float) -> str:
    """Format a number of bytes; 1 GB is 10^9."""
    return _scaled(count, ("bytes", "kB", "MB", "GB", "TB", "PB"))


def flops(count: float) -> str:
    """Format a number of FLOPs."""
    return _scaled(count, ("", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP", "ZFLOP"))


def _scaled(count: float, units: Sequence[str]) -> str:
    for unit in units[:-1]:
        if abs(count) < 1000:
            return f"{count:,.4g} {unit}".rstrip()
        count /= 1000
    return f"{count:,.4g} {units[-1]}"

"""How a dry run of `rvedit train` is printed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rvedit.editing.memory_plan import EditPlan
    from rvedit.training.plan import TrainingPlan


CARD_RATE = 1e14
"""Multiplications and additions a second of a card that is not here, for its guess of the time."""


def print_edit_plan(
    plan: EditPlan,
    seconds: tuple[float, float],
    device: str,
    fitting: EditPlan | None,
    card: float | None,
) -> None:
    """What an edit takes, and what to switch on for a card of so many GB; `device` is empty for that card."""
    rows, columns = plan.size
    windows = f"{plan.windows} window{'s' * (plan.windows > 1)} of {plan.steps} steps"
    typer.echo(f"{windows} at {columns}x{rows} with {plan.options.words}; nothing was loaded")
    weights = [(name, size(value)) for name, value in plan.weights.items()]
    _table("weights", ("", "size"), [*weights, ("total", size(sum(plan.weights.values())))])
    stages = [(stage.name, size(stage.work)) for stage in plan.stages]
    _table("held beside them while", ("", "size"), stages)
    host = "" if device == "cpu" and card is None else f", {size(plan.host_bytes)} of the host's memory"
    typer.echo(f"peak: {size(plan.device_bytes)} on the device{host}")
    machine = device or f"a card that multiplies {flops(CARD_RATE)}/s"
    typer.echo(f"time on {machine}, roughly: {seconds[0]:.3g} s a step, {seconds[1]:.3g} s in all")
    if card is None:
        return
    if fitting is None:
        typer.echo(f"no combination fits a card of {card:g} GB: edit a smaller clip, or on a larger card")
    else:
        typer.echo(f"a card of {card:g} GB: {fitting.options.words} ({size(fitting.device_bytes)})")


def print_plan(plan: TrainingPlan, as_json: bool = False) -> None:
    """Tables on stdout, plain text in a pipe; or one JSON object."""
    if as_json:
        typer.echo(json.dumps(plan.as_json()))
        return
    gpus = f"{plan.gpus} GPU{'s' * (plan.gpus > 1)}"
    at_once = f"{plan.clips_at_once} clip{'s' * (plan.clips_at_once > 1)} at once on each"
    together = f", {plan.parallel}" if plan.gpus > 1 else ""
    typer.echo(
        f"{plan.recipe}: {plan.task} of {plan.preset} on {gpus}{together}, {at_once}; nothing was started"
    )
    _print_parameters(plan)
    _print_tokens(plan)
    _print_compute(plan)
    _print_memory(plan)
    _table("disk", ("", "size"), [(name, size(value)) for name, value in plan.disk.items()])
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
        "frames that the MLLM sees": tokens.seen_frames,
        f"their patches, {pairs} x {rows} x {columns}": pairs * rows * columns,
        "positions in the language tower": tokens.language,
    }
    _table("tokens of a clip", ("", "number"), [(name, f"{count:,}") for name, count in counts.items()])


def _print_compute(plan: TrainingPlan) -> None:
    compute = plan.compute
    total = sum(compute.per_clip.values())
    parts = {name: value for name, value in compute.per_clip.items() if value}
    rows = [(name, flops(value), f"{value / total:.1%}") for name, value in parts.items()]
    rows += [("a clip", flops(total), ""), ("an optimizer step", flops(compute.per_step), "")]
    rows += [("the run", flops(compute.per_run), f"{compute.hours:,.3g} h")]
    _table("compute", ("", "FLOP", "share"), rows)


def _print_memory(plan: TrainingPlan) -> None:
    memory = plan.memory
    rows = _rows({name: value for name, value in memory.parts.items() if value})
    _table("memory of a GPU", ("", "size"), [*rows, ("total", size(memory.total))])
    if memory.with_checkpointing != memory.without_checkpointing:
        typer.echo(
            f"with gradient checkpointing {size(memory.with_checkpointing)}, "
            f"without {size(memory.without_checkpointing)}"
        )
    budget = size(memory.budget)
    if memory.fits:
        typer.echo(f"fits: {size(memory.total)} of {budget}")
        return
    typer.echo(f"DOES NOT FIT: {size(memory.total)} of {budget}; what would:")
    for remedy in memory.remedies:
        typer.echo(f"  {remedy}")


def _rows(values: Mapping[str, float]) -> list[tuple[str, str]]:
    return [(name, size(value)) for name, value in values.items()]


def _table(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for number, header in enumerate(headers):
        table.add_column(header, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print()
    console.print(table)


def size(count: float) -> str:
    """Bytes as people say them: 1 GB is 10^9."""
    return _scaled(count, ("bytes", "kB", "MB", "GB", "TB", "PB"))


def flops(count: float) -> str:
    """FLOPs as people say them."""
    return _scaled(count, ("", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP", "ZFLOP"))


def _scaled(count: float, units: Sequence[str]) -> str:
    for unit in units[:-1]:
        if abs(count) < 1000:
            return f"{count:,.4g} {unit}".rstrip()
        count /= 1000
    return f"{count:,.4g} {units[-1]}"

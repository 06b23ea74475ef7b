"""`rvedit prepare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rvedit_cli import console

prepare = typer.Typer(
    no_args_is_help=True, help="Prepare triplets for training and evaluation.", rich_markup_mode=None
)


@prepare.callback()
def _group() -> None:
    """Prepare triplets for training and evaluation."""


@prepare.command()
def playground(
    out: Annotated[Path, typer.Option(help="Folder for the clips and manifest.jsonl.")],
    count: Annotated[int, typer.Option(help="Number of triplets.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the world; equal seeds give equal triplets.")] = 0,
    split: Annotated[
        str,
        typer.Option(
            help="train, test, test_phrasing (unseen wordings) or test_pair (unseen noun and colour)."
        ),
    ] = "train",
    num_frames: Annotated[int, typer.Option(help="Frames of each clip.")] = 33,
    height: Annotated[int, typer.Option(help="Pixels.")] = 128,
    width: Annotated[int, typer.Option(help="Pixels.")] = 128,
    workers: Annotated[int | None, typer.Option(help="Processes; by default one per core.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Render triplets of the procedural world."""
    from rvedit.workflows.prepare import PlaygroundOrder, prepare_playground

    order = PlaygroundOrder(count, seed, split, num_frames, height, width)  # type: ignore[arg-type]
    with console.progress_bar() as bar:
        task = bar.add_task("rendering", total=count, note="")
        for done in prepare_playground(order, out, workers):
            bar.update(task, completed=done)
    manifest = out / "manifest.jsonl"
    typer.echo(
        json.dumps({"manifest": str(manifest), "count": count})
        if as_json
        else f"{manifest}: {count} triplets"
    )

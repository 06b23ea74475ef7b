"""`rvedit train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rvedit_cli import console


def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML file, such as recipes/nano.yaml.")],
    overlay: Annotated[
        list[Path] | None, typer.Option(help="A recipe laid over this one; repeatable.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="One value, such as steps=100; repeatable."),
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder of the runs' folders.")] = Path("runs"),
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; by default what is there.")] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh/--resume", help="Start anew, or go on from the last checkpoint.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print each logged step as a line of JSON.")
    ] = False,
) -> None:
    """Train what a recipe says; an interrupted run goes on exactly where it was."""
    from rvedit.recipes import load_recipe

    resolved = load_recipe(recipe, overlay or [], assignments or [])
    from rvedit.workflows.train import train as run

    console.quiet_libraries()

    folder = runs / resolved.name
    with console.progress_bar() as bar:
        task = bar.add_task(resolved.name, total=resolved.steps, note="")
        for scalars in run(resolved, runs, device, fresh):
            done = int(scalars["step"]) + 1
            bar.update(task, completed=done, note=f"loss {scalars['loss']:.4f}")
            if as_json and (done % resolved.log_every == 0 or done == resolved.steps):
                typer.echo(json.dumps(scalars))
    if not as_json:
        typer.echo(f"{folder}: {resolved.steps} steps done")

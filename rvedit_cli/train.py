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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print parameters, FLOPs, memory and disk; start nothing.")
    ] = False,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="GPUs of the dry run; by default as many as suit.")
    ] = None,
    gpu_memory: Annotated[float, typer.Option(min=1, help="GB of each of them.")] = 80,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print each logged step, or the dry run, as JSON.")
    ] = False,
) -> None:
    """Train what a recipe says; an interrupted run goes on exactly where it was."""
    from rvedit.training.recipe import load_recipe

    resolved = load_recipe(recipe, overlay or [], assignments or [])
    if dry_run:
        from rvedit.training.plan import plan_training
        from rvedit_cli.plan import print_plan

        print_plan(plan_training(resolved, gpus, gpu_memory * 1e9), as_json)
        return
    from rvedit.training.run import train as run

    console.quiet_libraries()

    folder = runs / resolved.name
    main = False
    with console.progress_bar() as bar:
        task = bar.add_task(resolved.name, total=resolved.steps, note="")
        for scalars in run(resolved, runs, device, fresh):
            main = scalars["rank"] == 0
            done = int(scalars["step"]) + 1
            bar.update(task, completed=done, note=_note(scalars), visible=main)
            if main and as_json and (done % resolved.log_every == 0 or done == resolved.steps):
                typer.echo(json.dumps(scalars))
    if main and not as_json:
        typer.echo(f"{folder}: {resolved.steps} steps done; edit with --model {folder}")


def _note(scalars: dict[str, float]) -> str:
    terms = [f"{name} {value:.4f}" for name, value in scalars.items() if name.startswith("loss")]
    memory = f", {scalars['memory_gb']:.1f} GB" if scalars["memory_gb"] else ""
    return (
        f"{', '.join(terms)}, rate {scalars['rate']:.2f}, {scalars['clips_per_second']:.1f} clips/s{memory}"
    )

"""`rvedit train`."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rvedit.io.errors import UserError
from rvedit_cli import console

if TYPE_CHECKING:
    from rvedit.training.recipe import Recipe

_recipe = partial(console.option, "Recipe")
_run = partial(console.option, "Run")
_plan = partial(console.option, "Dry run")
_export = partial(console.option, "Export")


def train(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE", help="YAML file, such as recipes/nano.yaml.")
    ] = None,
    overlay: Annotated[
        list[Path] | None, _recipe("Recipe whose keys override those of RECIPE. Repeatable.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        _recipe("Override one key, such as steps=100. Repeatable.", "--set", metavar="KEY=VALUE"),
    ] = None,
    runs: Annotated[Path, _run("Folder that holds one folder per run.")] = Path("runs"),
    fresh: Annotated[
        bool, _run("Start anew, or resume from the last checkpoint.", "--fresh/--resume")
    ] = False,
    device: Annotated[str | None, _run(console.DEVICE_HELP)] = None,
    as_json: Annotated[bool, _run("Print each logged step, or the dry run, as JSON.", "--json")] = False,
    dry_run: Annotated[
        bool, _plan("Print parameters, FLOPs, memory and disk space without training.", "--dry-run")
    ] = False,
    gpus: Annotated[
        int | None,
        _plan("With --dry-run: number of GPUs. Default: up to 8, as the batch size allows.", min=1),
    ] = None,
    gpu_memory: Annotated[float, _plan("With --dry-run: memory of each GPU in GB.", min=1)] = 80,
    export: Annotated[
        Path | None, _export("Write RUN/model from the last checkpoint, without training.", metavar="RUN")
    ] = None,
    step: Annotated[int | None, _export("With --export: the checkpoint of this step.", min=1)] = None,
) -> None:
    """Train a model as a recipe describes. An interrupted run resumes exactly where it stopped."""
    if export is not None:
        from rvedit.training.run import export_run

        console.quiet_libraries()
        recipe_of_run, folder = export_run(export, step)
        typer.echo(f"{folder}: written; edit with {_use(recipe_of_run, export)}")
        return
    if recipe is None:
        raise UserError("no recipe: name a YAML file, such as recipes/nano.yaml, or `export` RUN")
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
    is_main = False
    bar = console.progress_bar(resolved.name, total=resolved.steps)
    with bar as show, closing(run(resolved, runs, device, fresh)) as steps:
        for scalars in steps:
            is_main = scalars["rank"] == 0
            done = int(scalars["step"]) + 1
            show(done, note=_note(scalars), visible=is_main)
            if is_main and as_json and (done % resolved.log_every == 0 or done == resolved.steps):
                console.print_json(scalars)
    if is_main and not as_json:
        typer.echo(f"{folder}: {resolved.steps} steps done; edit with {_use(resolved, folder)}")


def _use(recipe: Recipe, folder: Path) -> str:
    """Return the options of `rvedit edit` for the model of a run."""
    model = recipe.model
    is_lora = model.transformer_lora_rank > 0
    return f"--model {model.init_from} --lora {folder}" if is_lora else f"--model {folder}"


def _note(scalars: dict[str, float]) -> str:
    terms = [f"{name} {value:.4f}" for name, value in scalars.items() if name.startswith("loss")]
    memory = f", {scalars['memory_gb']:.1f} GB" if scalars["memory_gb"] else ""
    return (
        f"{', '.join(terms)}, rate {scalars['rate']:.2f}, {scalars['clips_per_second']:.1f} clips/s{memory}"
    )

"""`rvedit train`: a recipe becomes a run folder with weights, log and everything to resume."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch
import yaml
from pydantic import ValidationError

from rvedit.io.errors import UserError
from rvedit.io.manifest import write_text
from rvedit.training.distributed import Processes
from rvedit.training.editor import EditorTask
from rvedit.training.loop import TrainingTask, fit
from rvedit.training.plan import why_not_runnable
from rvedit.training.recipe import Recipe
from rvedit.training.state import latest_checkpoint
from rvedit.training.vae import VAETask

# What may change when a run goes on: how long and how fast, how work is spread, what is written on the way.
FREE = {
    *("steps", "optimizer", "accumulation", "parallel", "max_skipped"),
    *("checkpoint_every", "log_every", "validation", "paper"),
}
RECORDED = ("rvedit", "torch", "diffusers", "transformers")


def train(
    recipe: Recipe, runs: Path, device: str | None = None, fresh: bool = False
) -> Iterator[dict[str, float]]:
    """Train a recipe in `runs/<name>`, yielding the scalars of each step.

    A run that was interrupted goes on from its last checkpoint, unless `fresh`. Under `torchrun` or
    `accelerate launch` every process calls it.
    """
    folder = runs / recipe.name
    cuda = torch.cuda.is_available() and device != "cpu"
    memory = torch.cuda.get_device_properties(0).total_memory if cuda else 0
    problem = why_not_runnable(recipe, int(os.environ.get("WORLD_SIZE", 1)) if cuda else 0, memory)
    if problem:
        raise UserError(problem)
    if not fresh and latest_checkpoint(folder):
        _refuse_other_recipe(recipe, folder)
    processes = Processes(recipe.parallel, device)
    task: TrainingTask
    task = VAETask(recipe, processes) if recipe.task == "vae" else EditorTask(recipe, processes)
    if processes.is_main:
        if fresh:  # else the newest of them would be gone on from, under the new recipe's name
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        _write_record(recipe, folder, processes)
    processes.wait()
    yield from fit(task, recipe, folder, processes, resume=not fresh)


def _refuse_other_recipe(recipe: Recipe, folder: Path) -> None:
    """A run goes on with the recipe that it began with; only its length and its intervals may change."""
    record = folder / "recipe.yaml"
    if not record.is_file():
        return
    try:  # keys that came after the run began have their defaults
        before = Recipe.model_validate(yaml.safe_load(record.read_text(encoding="utf-8")))
    except ValidationError:
        raise UserError(
            f"{record}: not a recipe of this version of rvedit: give another name with --set name=..., or "
            "start anew with --fresh"
        ) from None
    names = [key for key in Recipe.model_fields if key not in FREE]
    changed = [key for key in names if getattr(before, key) != getattr(recipe, key)]
    if before.optimizer.name != recipe.optimizer.name:  # each has moments of its own
        changed.append("optimizer.name")
    if changed:
        raise UserError(
            f"{folder}: the run there was begun with another {changed[0]}: "
            "give another name with --set name=..., or start anew with --fresh"
        )


def _write_record(recipe: Recipe, folder: Path, processes: Processes) -> None:
    """The resolved recipe, the versions and the revision that a run was made with."""
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    write_text(folder / "recipe.yaml", text)
    cuda = processes.device.type == "cuda"
    name = torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} CPU threads"
    record = {
        "revision": _revision(),
        "python": platform.python_version(),
        "device": name,
        "processes": processes.count,
        **{package: version(package) for package in RECORDED},
    }
    write_text(folder / "versions.yaml", yaml.safe_dump(record, sort_keys=False))


def _revision() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"

"""`rvedit train`: train a recipe into a run folder with weights, metrics and checkpoints."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Generator
from importlib.metadata import version
from pathlib import Path

import torch
import yaml
from pydantic import ValidationError

from rvedit.io.errors import UserError
from rvedit.io.manifest import write_text
from rvedit.training.distributed import Processes
from rvedit.training.loop import TrainingTask, fit
from rvedit.training.plan import why_not_runnable
from rvedit.training.recipe import Recipe, load_recipe
from rvedit.training.state import complete_checkpoints, latest_checkpoint, load_weights
from rvedit.training.tasks import task_class

# Recipe keys that may change on resume: length, rates, distribution of work, limits and output.
CHANGEABLE = {
    *("steps", "optimizer", "accumulation", "parallel", "shard_size", "context_parallel"),
    "max_skipped",
    *("checkpoint_every", "keep_checkpoints", "export_every", "log_every", "paper", "tracker", "compile"),
}
CHANGEABLE_IN_SECTIONS = {
    "alignment": ("log_ratio_every",),
    "data": ("workers", "max_unreadable"),
    "model": ("gradient_checkpointing",),
    "validation": ("every", "count", "num_inference_steps", "timesteps"),
}
RECORDED_PACKAGES = ("rvedit", "torch", "diffusers", "transformers")


def train(
    recipe: Recipe, runs: Path, device: str | None = None, fresh: bool = False
) -> Generator[dict[str, float], None, None]:
    """Train a recipe in `runs/<name>`, yielding the metrics of each step.

    An interrupted run resumes from its last checkpoint, unless `fresh`. Under `torchrun` or `accelerate
    launch` every process calls it. Raises UserError if the recipe cannot be trained on this machine.
    """
    folder = runs / recipe.name
    cuda = torch.cuda.is_available() and device != "cpu"
    memory = torch.cuda.get_device_properties(0).total_memory if cuda else 0
    problem = why_not_runnable(recipe, int(os.environ.get("WORLD_SIZE", 1)) if cuda else 0, memory)
    if problem:
        raise UserError(problem)
    if not fresh and latest_checkpoint(folder):
        _check_resumable(recipe, folder)
    processes = Processes(
        recipe.parallel, device, recipe.precision, recipe.shard_size, recipe.context_parallel
    )
    task: TrainingTask = task_class(recipe.task)(recipe, processes)
    if processes.is_main:
        if fresh:  # otherwise a later resume could load a checkpoint of the old recipe
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        _write_record(recipe, folder, processes)
    processes.wait()
    flops = 0.0
    if cuda:
        flops = recipe.batch_size * sum(task_class(recipe.task).costs(recipe).flops().values())
    yield from fit(task, recipe, folder, processes, not fresh, flops)


def export_run(folder: Path, step: int | None = None) -> tuple[Recipe, Path]:
    """Write `folder/model` from a run's last checkpoint, or that of a step; return recipe and model's folder.

    It has the EMA of the weights, if the run computes one. Nothing is trained, and no GPU is needed. Raises
    UserError if there is no such run or checkpoint.
    """
    record = folder / "recipe.yaml"
    if not record.is_file():
        raise UserError(f"{record}: not found: choose the folder of a run, such as runs/rvedit")
    checkpoints = {int(path.name.removeprefix("step_")): path for path in complete_checkpoints(folder)}
    chosen = checkpoints.get(max(checkpoints, default=0) if step is None else step)
    if chosen is None:
        found = ", ".join(map(str, checkpoints)) or "none"
        raise UserError(f"{folder}/checkpoints: no checkpoint of that step: those of steps {found} are there")
    recipe = load_recipe(record)
    model = recipe.model.model_copy(update={"frozen_weights": "fp32", "offload": False})
    validation = recipe.validation.model_copy(update={"every": 0})
    recipe = recipe.model_copy(update={"model": model, "validation": validation})
    task: TrainingTask = task_class(recipe.task)(recipe, Processes(device="cpu"))
    trained = {name: p for name, p in task.objective.named_parameters() if p.requires_grad}
    load_weights(chosen, trained, "average" if recipe.ema_decay else "model")
    task.objective.eval()
    task.export(folder / "model")
    return recipe, folder / "model"


def _check_resumable(recipe: Recipe, folder: Path) -> None:
    """Raise UserError if a run was started with a recipe that differs in keys that may not change."""
    record = folder / "recipe.yaml"
    if not record.is_file():
        return
    try:  # keys that were added after the run started have their defaults
        original = Recipe.model_validate(yaml.safe_load(record.read_text(encoding="utf-8")))
    except ValidationError:
        raise UserError(
            f"{record}: not a recipe of this version of rvedit: set another name, or start over with `fresh`"
        ) from None
    for section, keys in CHANGEABLE_IN_SECTIONS.items():
        values = {key: getattr(getattr(recipe, section), key) for key in keys}
        changed_section = getattr(original, section).model_copy(update=values)
        original = original.model_copy(update={section: changed_section})
    names = [key for key in Recipe.model_fields if key not in CHANGEABLE]
    changed = [key for key in names if getattr(original, key) != getattr(recipe, key)]
    if original.optimizer.name != recipe.optimizer.name:  # their states are not compatible
        changed.append("optimizer.name")
    if changed:
        raise UserError(
            f"{folder}: was started with another {changed[0]}: set another name, or start over with `fresh`"
        )


def _write_record(recipe: Recipe, folder: Path, processes: Processes) -> None:
    """Write the resolved recipe, package versions and the git revision."""
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
        **{package: version(package) for package in RECORDED_PACKAGES},
    }
    write_text(folder / "versions.yaml", yaml.safe_dump(record, sort_keys=False))


def _revision() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"

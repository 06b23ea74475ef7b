"""`rvedit train`: a recipe becomes a run folder with weights, log and everything to resume."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch
import yaml

from rvedit.errors import UserError
from rvedit.recipes import Recipe
from rvedit.training.editor import EditorTask
from rvedit.training.loop import TrainingTask, fit
from rvedit.training.state import latest_checkpoint
from rvedit.training.vae import VAETask

RECORDED = ("rvedit", "torch", "diffusers", "transformers")


def train(
    recipe: Recipe, runs: Path, device: str | None = None, fresh: bool = False
) -> Iterator[dict[str, float]]:
    """Train a recipe in `runs/<name>`, yielding the scalars of each step.

    A run that was interrupted goes on from its last checkpoint, unless `fresh`.
    """
    folder = runs / recipe.name
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if not fresh and latest_checkpoint(folder):
        _refuse_other_recipe(recipe, folder)
    task: TrainingTask = VAETask(recipe, place) if recipe.task == "vae" else EditorTask(recipe, place)
    _write_record(recipe, folder, place)
    yield from fit(task, recipe, folder, resume=not fresh)


def _refuse_other_recipe(recipe: Recipe, folder: Path) -> None:
    """A run goes on with the recipe that it began with; only its length and its intervals may change."""
    record = folder / "recipe.yaml"
    if not record.is_file():
        return
    free = {"steps", "checkpoint_every", "log_every", "optimizer"}
    before = yaml.safe_load(record.read_text(encoding="utf-8"))
    now = recipe.model_dump(mode="json")
    changed = [key for key in now if key not in free and before.get(key) != now[key]]
    if changed:
        raise UserError(
            f"{folder}: the run there was begun with another {changed[0]}: "
            "give another name with --set name=..., or start anew with --fresh"
        )


def _write_record(recipe: Recipe, folder: Path, device: torch.device) -> None:
    """The resolved recipe, the versions and the revision that a run was made with."""
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    record = {
        "revision": _revision(),
        "python": platform.python_version(),
        "device": name,
        **{package: version(package) for package in RECORDED},
    }
    (folder / "versions.yaml").write_text(yaml.safe_dump(record, sort_keys=False), encoding="utf-8")


def _revision() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"

"""The loop around any training task: schedule, averaging, checkpoints, log.

Nothing random is carried from step to step: data, times and noise are functions of (seed, step), so a run
killed at any moment and resumed has the very losses of the uninterrupted one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from rvedit.errors import UserError
from rvedit.recipes import OptimizerRecipe, Recipe
from rvedit.training.optimizers import NamedOptimizer
from rvedit.training.state import latest_checkpoint, load_checkpoint, save_checkpoint


class TrainingTask(Protocol):
    """What the loop trains."""

    @property
    def model(self) -> nn.Module:
        """All that is trained or carried along."""

    def batches(self, first_step: int) -> Iterator[Any]:
        """Yield the batch of each step from `first_step` on."""

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """Scalars of one step; `loss` is the one to descend."""

    def export(self, folder: Path) -> None:
        """Write the trained parts as others load them."""


def rate_fraction(recipe: OptimizerRecipe, step: int, steps: int) -> float:
    """Share of the peak rate at a step from 0 on: linear warm-up, constant, linear decay at the end."""
    rise = (step + 1) / (recipe.warmup_steps + 1)
    fall = (steps - step) / (recipe.decay_steps + 1)
    return min(1.0, rise, fall)


def fit(task: TrainingTask, recipe: Recipe, folder: Path, resume: bool = True) -> Iterator[dict[str, float]]:
    """Train up to `recipe.steps`, yielding each step's scalars; weights, state and log go to `folder`."""
    torch.set_flush_denormal(True)  # CPUs crawl through denormal numbers
    try:
        yield from _fit(task, recipe, folder, resume)
    finally:
        torch.set_flush_denormal(False)


def _fit(task: TrainingTask, recipe: Recipe, folder: Path, resume: bool) -> Iterator[dict[str, float]]:
    folder.mkdir(parents=True, exist_ok=True)
    optimizer = NamedOptimizer(task.model, recipe.optimizer)
    trained = optimizer.trained
    average = EMAModel(trained.values(), decay=recipe.ema_decay) if recipe.ema_decay else None
    first_step = 0
    checkpoint = latest_checkpoint(folder) if resume else None
    if checkpoint is not None:
        first_step = load_checkpoint(checkpoint, optimizer, average)
    task.model.train()
    log = _Log(folder / "metrics.jsonl", first_step)
    device = next(iter(trained.values())).device
    batches = task.batches(first_step)
    for step in range(first_step, recipe.steps):
        started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            losses = task.losses(next(batches), step)
        losses["loss"].backward()
        norm = nn.utils.clip_grad_norm_(trained.values(), recipe.optimizer.max_grad_norm)
        fraction = rate_fraction(recipe.optimizer, step, recipe.steps)
        optimizer.step(fraction)
        if average is not None:
            average.step(trained.values())
        scalars = {name: float(value.detach()) for name, value in losses.items()}
        scalars |= {
            "step": step,
            "grad_norm": float(norm),
            "rate": fraction,
            "seconds": time.perf_counter() - started,
        }
        log.write(scalars)
        done = step + 1
        if done % recipe.checkpoint_every == 0 or done == recipe.steps:
            save_checkpoint(folder, done, optimizer, average)
        yield scalars
    if average is not None:
        average.copy_to(trained.values())
    task.model.eval()
    task.export(folder)


def freeze(model: nn.Module, frozen: Sequence[str]) -> None:
    """Leave out of training the parameters whose names begin with one of `frozen`; each must exist."""
    for beginning in frozen:
        parameters = [p for name, p in model.named_parameters() if name.startswith(beginning)]
        if not parameters:
            parts = ", ".join(name for name, _ in model.named_children())
            raise UserError(f"model.frozen names {beginning}: no part begins so: the parts are {parts}")
        for parameter in parameters:
            parameter.requires_grad_(False)


class _Log:
    """One JSON line per step; on resume, lines of steps that are run again are dropped."""

    def __init__(self, path: Path, first_step: int):
        kept = path.read_text().splitlines()[:first_step] if path.exists() else []
        path.write_text("".join(line + "\n" for line in kept))
        self.file = path.open("a", buffering=1)

    def write(self, scalars: dict[str, float]) -> None:
        self.file.write(json.dumps(scalars) + "\n")


def per_step(first_step: int, batch_size: int) -> Iterable[list[int]]:
    """Sample numbers of each step: a pure function of the step, so that the step alone resumes the order."""
    step = first_step
    while True:
        yield list(range(step * batch_size, (step + 1) * batch_size))
        step += 1

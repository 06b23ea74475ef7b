"""The loop around any training task: schedule, averaging, checkpoints, log.

Nothing random is carried from step to step: data, times and noise are functions of a sample's number in the
run, so a run killed at any moment and resumed has the very losses of the uninterrupted one, on the same
number of processes or another.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from rvedit.io.errors import Interrupted, UserError
from rvedit.training.distributed import Processes, full_tensor
from rvedit.training.log import RunLog
from rvedit.training.optimizers import NamedOptimizer
from rvedit.training.recipe import OptimizerRecipe, Recipe
from rvedit.training.state import RunState, latest_checkpoint, load_checkpoint, save_checkpoint


class TrainingTask(Protocol):
    """What the loop trains."""

    @property
    def objective(self) -> nn.Module:
        """All that is trained; called with (batch, step) it gives scalars to log, and `loss` among them."""

    def batches(self, numbers: Iterable[list[int]]) -> Iterator[Any]:
        """Yield the minibatch of each list of sample numbers."""

    def validate(self, step: int, folder: Path) -> None:
        """Show what the model can do by now; all processes call it, the first one writes."""

    def export(self, folder: Path) -> None:
        """Write the trained parts as others load them; all processes call it, the first one writes."""


def rate_fraction(recipe: OptimizerRecipe, step: int, steps: int) -> float:
    """Share of the peak rate at a step from 0 on: linear warm-up, constant, linear decay at the end."""
    rise = (step + 1) / (recipe.warmup_steps + 1)
    fall = (steps - step) / (recipe.decay_steps + 1)
    return min(1.0, rise, fall)


def fit(
    task: TrainingTask, recipe: Recipe, folder: Path, processes: Processes, resume: bool = True
) -> Iterator[dict[str, float]]:
    """Train up to `recipe.steps`, yielding each step's scalars; weights, state and log go to `folder`.

    On SIGTERM or Ctrl-C the step is finished, a checkpoint saved and `Interrupted` raised.
    """
    torch.set_flush_denormal(True)  # CPUs crawl through denormal numbers
    try:
        with _stop_signals() as stops:
            yield from _fit(task, recipe, folder, processes, resume, stops)
    finally:
        torch.set_flush_denormal(False)


def _fit(
    task: TrainingTask,
    recipe: Recipe,
    folder: Path,
    processes: Processes,
    resume: bool,
    stops: list[int],
) -> Iterator[dict[str, float]]:
    model = processes.wrap(task.objective)
    optimizer = NamedOptimizer(task.objective, recipe.optimizer)
    trained = optimizer.trained
    average = None
    if recipe.ema_decay:
        average = EMAModel(trained.values(), decay=recipe.ema_decay, foreach=recipe.parallel == "ddp")
    state = RunState(0)
    checkpoint = latest_checkpoint(folder) if resume else None
    if checkpoint is not None:
        state = load_checkpoint(checkpoint, optimizer, average)
    model.train()
    log = RunLog(folder, state.step) if processes.is_main else None
    batches = task.batches(sample_numbers(recipe, state.step, processes))
    bf16 = recipe.precision == "bf16" and computes_bf16(processes.device)
    while state.step < recipe.steps:
        step, started = state.step, time.perf_counter()
        losses: dict[str, float] = {}
        waited = 0.0
        for part in range(recipe.accumulation):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            last = part == recipe.accumulation - 1
            with processes.gradients(model, synchronize=last):
                with torch.autocast(processes.device.type, torch.bfloat16, enabled=bf16):
                    scalars: dict[str, Tensor] = model(batch, step)
                (scalars["loss"] / recipe.accumulation).backward()
            for name, value in scalars.items():
                losses[name] = losses.get(name, 0.0) + float(value.detach()) / recipe.accumulation
        norm = float(full_tensor(nn.utils.clip_grad_norm_(trained.values(), recipe.optimizer.max_grad_norm)))
        losses = processes.mean(losses)
        fraction = rate_fraction(recipe.optimizer, step, recipe.steps)
        sound = math.isfinite(losses["loss"]) and math.isfinite(norm)
        if sound:
            optimizer.step(fraction)
            if average is not None:
                average.step(trained.values())
        else:
            optimizer.clear()
        state = RunState(step + 1, state.skipped + (not sound))
        seconds = time.perf_counter() - started
        record = {
            **losses,
            "step": step,
            "grad_norm": norm,
            "rate": fraction,
            "skipped": state.skipped,
            "seconds": seconds,
            "waited": waited,
            "clips_per_second": recipe.batch_size / seconds,
            "memory_gb": _peak_memory(processes.device) / 1e9,
        }
        if log:
            log.write(record)
        stop = processes.any(bool(stops))
        done = state.step == recipe.steps
        if state.skipped > recipe.max_skipped:
            raise UserError(
                f"{folder}: the loss was not finite in {state.skipped} steps, the last of them {step}: lower "
                "optimizer.learning_rate, or allow more with --set max_skipped=N"
            )
        if stop or done or state.step % recipe.checkpoint_every == 0:
            save_checkpoint(folder, state, optimizer, average, processes)
        yield {**record, "rank": processes.rank}
        if recipe.validation.every and (done or state.step % recipe.validation.every == 0):
            model.eval()
            task.validate(state.step, folder)
            model.train()
        if stop and not done:
            again = "the same command goes on" if resume else "the same command without --fresh goes on"
            line = f"{folder}: stopped after step {state.step}, which is saved: {again}"
            raise Interrupted(line, 128 + (stops or [signal.SIGTERM])[0])
    if average is not None:
        average.copy_to(trained.values())
    model.eval()
    task.export(folder / "model")
    processes.wait()


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Within it SIGTERM and Ctrl-C are noted, not obeyed; a second one is obeyed at once."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not in the main thread: whoever called from there minds the signals
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _peak_memory(device: torch.device) -> int:
    """Bytes: on a GPU the allocator's peak, on a CPU the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def freeze(model: nn.Module, frozen: Sequence[str]) -> None:
    """Leave out of training the parameters whose names begin with one of `frozen`; each must exist."""
    for beginning in frozen:
        parameters = [p for name, p in model.named_parameters() if name.startswith(beginning)]
        if not parameters:
            parts = ", ".join(name for name, _ in model.named_children())
            raise UserError(f"model.frozen names {beginning}: no part begins so: the parts are {parts}")
        for parameter in parameters:
            parameter.requires_grad_(False)


def computes_bf16(device: torch.device) -> bool:
    """Whether bf16 is faster than fp32: on CPUs without instructions for it, it is a hundred times slower."""
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def sample_numbers(recipe: Recipe, first_step: int, processes: Processes) -> Iterable[list[int]]:
    """The sample numbers of each minibatch of this process, in order.

    Step s of the run sees samples s B ... (s + 1) B - 1, which its minibatches share: a pure function of
    the step, so that the step alone resumes the order.
    """
    minibatches = processes.count * recipe.accumulation
    size, rest = divmod(recipe.batch_size, minibatches)
    if rest:
        raise UserError(
            f"batch_size is {recipe.batch_size}: it must be a multiple of processes x accumulation, "
            f"{processes.count} x {recipe.accumulation}"
        )
    return _numbers(recipe, first_step, processes, size)


def _numbers(recipe: Recipe, first_step: int, processes: Processes, size: int) -> Iterator[list[int]]:
    for step in range(first_step, recipe.steps):
        for part in range(recipe.accumulation):
            first = step * recipe.batch_size + (part * processes.count + processes.rank) * size
            yield list(range(first, first + size))

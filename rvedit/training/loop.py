"""The training loop: learning rate schedule, EMA, checkpoints and metrics.

There is no random state between steps: data, timesteps and noise are functions of a sample's number in the
run. A run that is killed and resumed thus has exactly the losses of an uninterrupted one, even with another
number of processes.
"""

from __future__ import annotations

import math
import signal
import time
import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from diffusers.training_utils import EMAModel
from torch import nn

from rvedit.io.errors import Interrupted, UserError
from rvedit.io.signals import stop_signals
from rvedit.training.distributed import Processes, full_tensor
from rvedit.training.gradients import StepGradients
from rvedit.training.limits import check_skipped, check_unreadable, clips_at_once
from rvedit.training.log import RunLog
from rvedit.training.optimizers import NamedOptimizer
from rvedit.training.recipe import Recipe
from rvedit.training.recipe_sections import OptimizerRecipe
from rvedit.training.state import CheckpointWriter, RunState, latest_checkpoint, load_checkpoint
from rvedit.training.step import with_bins

PEAK_RATES = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}
"""Dense FLOP/s in bf16 by part of a GPU's name, from the makers' data sheets."""


class TrainingTask(Protocol):
    """A task for the training loop."""

    @property
    def objective(self) -> nn.Module:
        """Return a module of all trained modules that maps (batch, step) to `loss` and metrics."""

    @property
    def unreadable(self) -> Mapping[str, str]:
        """Return the reasons why clips of the batches so far could not be read, by path."""

    def batches(self, numbers: Iterable[list[int]]) -> Generator[Any, None, None]:
        """Yield the minibatch of each list of sample numbers."""

    def validate(self, step: int, folder: Path) -> dict[str, float]:
        """Write samples of the model's current output, and return its losses on held-out data.

        All processes call it, the main process writes.
        """

    def export(self, folder: Path) -> None:
        """Write the trained modules for loading; all processes call it, the main process writes."""


def rate_fraction(recipe: OptimizerRecipe, step: int, steps: int) -> float:
    """Return the learning rate at a step, from 0, over its peak: linear warmup, constant, linear decay."""
    warmup = (step + 1) / (recipe.warmup_steps + 1)
    decay = (steps - step) / (recipe.decay_steps + 1)
    return min(1.0, warmup, decay)


def fit(
    task: TrainingTask,
    recipe: Recipe,
    folder: Path,
    processes: Processes,
    resume: bool = True,
    flops_per_step: float = 0.0,
) -> Generator[dict[str, float], None, None]:
    """Train up to `recipe.steps` and yield each step's metrics; checkpoints and metrics go to `folder`.

    `flops_per_step`, of all processes, is for the logged utilization of GPUs; 0: it is not known.

    On SIGTERM, SIGHUP or Ctrl-C the step is finished, a checkpoint is saved and `Interrupted` is raised.
    """
    torch.set_flush_denormal(True)  # CPUs are very slow with denormal numbers
    try:
        with _collect_stop_signals() as signals, ExitStack() as stack:
            yield from _fit(task, recipe, folder, processes, resume, flops_per_step, signals, stack)
    finally:
        torch.set_flush_denormal(False)


def _fit(
    task: TrainingTask,
    recipe: Recipe,
    folder: Path,
    processes: Processes,
    resume: bool,
    flops_per_step: float,
    signals: list[int],
    stack: ExitStack,
) -> Generator[dict[str, float], None, None]:
    model = processes.wrap(task.objective)
    optimizer = NamedOptimizer(task.objective, recipe.optimizer)
    trained = optimizer.trained
    ema = None
    if recipe.ema_decay:
        ema = EMAModel(optimizer.local.values(), decay=recipe.ema_decay, foreach=True)
    state = RunState(0)
    checkpoint = latest_checkpoint(folder) if resume else None
    if checkpoint is not None:
        state = load_checkpoint(checkpoint, optimizer, ema)
    model.train()
    gradients = StepGradients(task.objective, model, trained, processes, recipe, state.log_ratio)
    writer = stack.enter_context(closing(CheckpointWriter(folder, processes, recipe.keep_checkpoints)))
    log = None
    if processes.is_main:
        log = stack.enter_context(closing(RunLog(folder, state.step, recipe.tracker)))
    numbers = sample_numbers(recipe, state.step, processes)
    batches = _TimedIterator(stack.enter_context(closing(task.batches(numbers))))
    if recipe.validation.every and state.step == 0:
        _validate(task, model, 0, folder, log)
    while state.step < recipe.steps:
        step, started, batches.waited = state.step, time.perf_counter(), 0.0
        losses = gradients.compute(islice(batches, recipe.accumulation), step, state.step - state.skipped)
        norm = float(full_tensor(nn.utils.clip_grad_norm_(trained.values(), recipe.optimizer.max_grad_norm)))
        losses = with_bins(processes.mean(losses))
        fraction = rate_fraction(recipe.optimizer, step, recipe.steps)
        is_finite = math.isfinite(losses["loss"]) and math.isfinite(norm)
        if is_finite:
            writer.wait_for_copy()
            optimizer.step(fraction)
            if ema is not None:
                ema.step(optimizer.local.values())
        else:
            optimizer.clear()
        known = state.unreadable
        unreadable = processes.union({k: v for k, v in task.unreadable.items() if k not in known})
        state = RunState(
            step=step + 1,
            skipped=state.skipped + (not is_finite),
            log_ratio=gradients.log_ratio,
            skipped_in_a_row=0 if is_finite else state.skipped_in_a_row + 1,
            unreadable=[*known, *unreadable],
        )
        seconds = time.perf_counter() - started
        record = {
            **losses,
            "step": step,
            "grad_norm": norm,
            "rate": fraction,
            "skipped": state.skipped,
            "unreadable": len(state.unreadable),
            "seconds": seconds,
            "waited": batches.waited,
            "clips_per_second": recipe.batch_size / seconds,
            "memory_gb": _peak_memory(processes.device) / 1e9,
            **_utilization(flops_per_step, seconds, processes),
        }
        if log:
            log.write(record)
        stop = processes.any(bool(signals))
        done = state.step == recipe.steps
        check_skipped(folder, state, recipe)
        check_unreadable(folder, state, unreadable, recipe.data.max_unreadable)
        if processes.is_main:
            for reason in unreadable.values():
                warnings.warn(f"{reason}; another clip takes its place", stacklevel=2)
        # Weights that the last update may have spoiled must not replace a good checkpoint.
        if stop or (is_finite and (done or state.step % recipe.checkpoint_every == 0)):
            writer.save(state, optimizer, ema)
        if stop or done:
            writer.finish()
        yield {**record, "rank": processes.rank}
        ends_early = stop and not done
        is_due = recipe.validation.every and (done or state.step % recipe.validation.every == 0)
        if is_due and not ends_early:
            _validate(task, model, state.step, folder, log)
        if recipe.export_every and state.step % recipe.export_every == 0 and not (stop or done):
            writer.wait_for_copy()
            _export(task, model, optimizer, ema, folder / "exports" / f"step_{state.step:08d}")
            processes.wait()
        if ends_early:
            again = "run it again" if resume else "run it again without `fresh`"
            line = f"{folder}: stopped after step {state.step}, which is saved: {again} to resume"
            raise Interrupted(line, 128 + (signals or [signal.SIGTERM])[0])
    _export(task, model, optimizer, ema, folder / "model")
    processes.wait()


def _utilization(flops: float, seconds: float, processes: Processes) -> dict[str, float]:
    """Return the TFLOP/s of each GPU, and their share of its peak in bf16 if that is known (MFU)."""
    if not flops or processes.device.type != "cuda":
        return {}
    rate = flops / seconds / processes.count
    name = torch.cuda.get_device_name(processes.device)
    peak = next((peak for part, peak in PEAK_RATES.items() if part in name), None)
    return {"tflops_per_gpu": rate / 1e12, **({"mfu": rate / peak} if peak else {})}


def _validate(task: TrainingTask, model: nn.Module, step: int, folder: Path, log: RunLog | None) -> None:
    model.eval()
    losses = task.validate(step, folder)
    if log and losses:
        log.write_validation({"step": step, **losses})
    model.train()


def _export(
    task: TrainingTask, model: nn.Module, optimizer: NamedOptimizer, ema: EMAModel | None, folder: Path
) -> None:
    """Write the model with the EMA of its weights, if there is one; training can go on."""
    weights = optimizer.local.values()
    if ema is not None:
        ema.store(weights)
        ema.copy_to(weights)
    model.eval()
    task.export(folder)
    model.train()
    if ema is not None:
        ema.restore(weights)


class _TimedIterator(Iterator[Any]):
    """An iterator that adds the seconds spent waiting for items to `waited`."""

    def __init__(self, items: Iterator[Any]):
        self.items = items
        self.waited = 0.0

    def __next__(self) -> Any:
        requested = time.perf_counter()
        item = next(self.items)
        self.waited += time.perf_counter() - requested
        return item


@contextmanager
def _collect_stop_signals() -> Iterator[list[int]]:
    """Append signals that stop a run to the list in this context; Ctrl-C after one interrupts at once."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:  # schedulers may send SIGTERM to all processes, and again
            raise KeyboardInterrupt
        received.append(number)

    try:
        previous = {number: signal.signal(number, handle) for number in stop_signals()}
    except ValueError:  # outside the main thread, where the caller must handle signals
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: of the allocator on a GPU, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def freeze(model: nn.Module, frozen: Sequence[str]) -> None:
    """Freeze parameters by the prefixes of their names. Raises UserError for a prefix that none has."""
    for prefix in frozen:
        parameters = [p for name, p in model.named_parameters() if name.startswith(prefix)]
        if not parameters:
            modules = ", ".join(name for name, _ in model.named_children())
            raise UserError(f"model.frozen has {prefix}, but no parameter of that name: choose in {modules}")
        for parameter in parameters:
            parameter.requires_grad_(False)


def sample_numbers(recipe: Recipe, first_step: int, processes: Processes) -> Iterable[list[int]]:
    """Return the sample numbers of each minibatch of this process, in order.

    The minibatches of step s share the samples s B ... (s + 1) B - 1, so that the order resumes from the step
    alone. Raises UserError if the batch cannot be divided.
    """
    size = clips_at_once(recipe, processes.count)
    return _numbers(recipe, first_step, processes, size)


def _numbers(recipe: Recipe, first_step: int, processes: Processes, size: int) -> Iterator[list[int]]:
    for step in range(first_step, recipe.steps):
        for part in range(recipe.accumulation):
            first = step * recipe.batch_size + (part * processes.data_count + processes.data_rank) * size
            yield list(range(first, first + size))

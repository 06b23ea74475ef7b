"""Checkpoints of a run: weights, their EMA and the optimizer state, as safetensors.

Every process copies its own parts of the tensors to host memory and writes them, in the background. Only the
next update waits, until they are copied. A checkpoint has a temporary name until the files of all processes
are there, so that a kill does not damage the previous one. `state.json`, written last, lists the files with
their sizes, so that a checkpoint that a power failure left incomplete is recognized. A run can resume with
another number of processes (`rvedit.training.shard_files`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from torch import Tensor, nn

from rvedit.io.errors import UserError
from rvedit.training.distributed import Processes, as_shard, first_row, local_tensor
from rvedit.training.optimizers import NamedOptimizer
from rvedit.training.shard_files import Part, StoredTensors, write_parts

STATE = "state.json"


@dataclass(frozen=True)
class RunState:
    """Counters of a run."""

    step: int
    """Completed optimizer steps."""
    skipped: int = 0
    """Updates skipped because the loss or a gradient was not finite."""
    log_ratio: float | None = None
    """Running mean of ln(|gradient of L_align| / |gradient of L_fm|), for `alignment.ratio`."""
    skipped_in_a_row: int = 0
    """Updates skipped since the last one that was made."""
    unreadable: Sequence[str] = ()
    """Paths of the clips that could not be read."""


class CheckpointWriter:
    """Saves checkpoints as `folder/checkpoints/step_N`, one at a time, while training goes on."""

    def __init__(self, folder: Path, processes: Processes, keep: int):
        self.checkpoints, self.processes, self.keep = folder / "checkpoints", processes, keep
        # Of its own, so that the background thread's messages are not taken for those of the training.
        self.group = dist.new_group(backend="gloo") if processes.count > 1 else None
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.copied: Future[None] | None = None
        self.saving: tuple[Path, Future[str]] | None = None
        self.host: dict[tuple[str, str], Tensor] = {}

    def save(self, state: RunState, optimizer: NamedOptimizer, ema: EMAModel | None) -> None:
        """Start to copy and to write the state, after `finish`. All processes call it.

        Until `wait_for_copy`, the state must not change.
        """
        self.finish()
        final = self.checkpoints / f"step_{state.step:08d}"
        part = final.with_suffix(".part")
        problem = _attempt(lambda: _make_empty(part)) if self.processes.is_main else ""
        self._check(final, problem)
        groups = self._own_parts(optimizer, ema)
        self.copied = self.thread.submit(self._copy, groups)
        self.saving = final, self.thread.submit(self._write, part, final, state, groups)

    def wait_for_copy(self) -> None:
        """Wait until the state of the last save may change."""
        if self.copied is not None:
            self.copied.result()

    def finish(self) -> None:
        """Wait for the save in progress. All processes call it.

        Raises UserError if it cannot be written; older checkpoints are kept then.
        """
        if self.saving is not None:
            final, result = self.saving
            self.saving = None
            self._check(final, result.result())

    def close(self) -> None:
        """Wait for the save in progress, whatever comes of it."""
        self.thread.shutdown()

    def _check(self, final: Path, problem: str) -> None:
        if self.processes.any(bool(problem)):
            raise UserError(
                f"{final}: the checkpoint could not be written ({problem or 'see the main process'}): make "
                "room or choose another `runs` folder, and run it again to resume from the one before"
            )

    def _own_parts(self, optimizer: NamedOptimizer, ema: EMAModel | None) -> dict[str, dict[str, Part]]:
        """Return the parts that this process writes, by group and name."""
        groups: dict[str, dict[str, Part]] = {}
        for number, (group, name, tensor) in enumerate(_named_tensors(optimizer, ema)):
            local = local_tensor(tensor)
            if self.processes.writes(tensor, number) and local.numel():
                groups.setdefault(group, {})[name] = Part(local, first_row(tensor))
        return groups

    def _copy(self, groups: Mapping[str, dict[str, Part]]) -> None:
        """Replace parts by copies in host memory, which the next save uses again."""
        pin = self.processes.device.type == "cuda"
        for group, parts in groups.items():
            for name, (rows, first) in parts.items():
                if (group, name) not in self.host:
                    self.host[group, name] = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=pin)
                self.host[group, name].copy_(rows, non_blocking=True)
                parts[name] = Part(self.host[group, name], first)
        if pin:
            torch.cuda.synchronize(self.processes.device)

    def _write(
        self, part: Path, final: Path, state: RunState, groups: Mapping[str, Mapping[str, Part]]
    ) -> str:
        """Write a process's files, and complete the checkpoint when all have; return why it failed, or ''."""
        rank = self.processes.rank
        writes = (partial(write_parts, part, group, rank, parts) for group, parts in groups.items())
        problem = next(filter(None, map(_attempt, writes)), "")
        if self.group is not None:
            problems: list[Any] = [""] * self.processes.count
            dist.all_gather_object(problems, problem, self.group)
            problem = next(filter(None, problems), "")
        if self.processes.is_main:
            problem = problem or _attempt(lambda: _complete(part, final, state, self.keep))
            if problem:
                shutil.rmtree(part, ignore_errors=True)
        return problem


def _named_tensors(optimizer: NamedOptimizer, ema: EMAModel | None) -> Iterator[tuple[str, str, Tensor]]:
    """Yield (group, name, tensor) of all that a checkpoint holds."""
    for name, parameter in optimizer.trained.items():
        yield "model", name, parameter.detach()
    for name, tensor in optimizer.named_state().items():
        yield "optimizer", name, tensor
    if ema is not None:
        for (name, parameter), average in zip(optimizer.trained.items(), ema.shadow_params, strict=True):
            yield "average", name, as_shard(average, parameter)


def _attempt(action: Callable[[], None]) -> str:
    """Run an action; return the reason if writing failed, else an empty string."""
    try:
        action()
    except (OSError, SafetensorError) as error:
        return getattr(error, "strerror", None) or str(error).splitlines()[0]
    return ""


def _make_empty(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def _complete(part: Path, final: Path, state: RunState, keep: int) -> None:
    sizes = {file.name: file.stat().st_size for file in sorted(part.iterdir())}
    (part / STATE).write_text(json.dumps({**asdict(state), "files": sizes}, indent=1), encoding="utf-8")
    if final.exists():
        shutil.rmtree(final)
    part.rename(final)
    for old in complete_checkpoints(final.parent.parent)[:-keep]:
        shutil.rmtree(old)


def complete_checkpoints(folder: Path) -> list[Path]:
    """Return a run's complete checkpoints from old to new."""
    checkpoints = sorted((folder / "checkpoints").glob("step_*[0-9]"))
    return [checkpoint for checkpoint in checkpoints if _read_state(checkpoint) is not None]


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint in a run's folder, or None."""
    return next(reversed(complete_checkpoints(folder)), None)


def last_checkpoint_before(folder: Path, step: int) -> Path | None:
    """Return the newest complete checkpoint of a run after fewer steps than `step`, or None."""
    checkpoints = reversed(complete_checkpoints(folder))
    return next((path for path in checkpoints if int(path.name.removeprefix("step_")) < step), None)


def _read_state(checkpoint: Path) -> RunState | None:
    """Return the state of a checkpoint; None if a file is missing or has the wrong size."""
    try:
        content = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        sizes = content.pop("files")
        if any((checkpoint / name).stat().st_size != size for name, size in sizes.items()):
            return None
        return RunState(**content)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def load_checkpoint(checkpoint: Path, optimizer: NamedOptimizer, ema: EMAModel | None) -> RunState:
    """Restore weights, optimizer state and EMA in place; return the run's state.

    A process reads only its own rows of sharded tensors. Raises UserError if the recipe has other parameters.
    """
    state = _read_state(checkpoint)
    assert state is not None, checkpoint
    load_weights(checkpoint, optimizer.trained)
    moments = StoredTensors(checkpoint, "optimizer")
    optimizer.load_named_state(
        {key: moments.read(key, optimizer.trained[key.rpartition("/")[0]]) for key in moments.parts}
    )
    if ema is not None:
        averages = StoredTensors(checkpoint, "average")
        ema.optimization_step = state.step - state.skipped
        ema.shadow_params = [local_tensor(averages.read(name, p)) for name, p in optimizer.trained.items()]
    return state


def load_weights(checkpoint: Path, trained: Mapping[str, nn.Parameter], group: str = "model") -> None:
    """Restore the weights, or their EMA (`group="average"`), in place."""
    weights = StoredTensors(checkpoint, group)
    if differing := sorted(weights.parts.keys() ^ trained.keys()):
        raise UserError(
            f"{checkpoint}: its parameters are not those of this recipe ({differing[0]} and "
            f"{len(differing) - 1} more): start over with `fresh`"
        )
    for name, parameter in trained.items():
        if weights.shape(name) != tuple(parameter.shape):
            raise UserError(
                f"{checkpoint}: {name} has shape {weights.shape(name)}, not {tuple(parameter.shape)} as in "
                "this recipe's model: start over with `fresh`"
            )
        local_tensor(parameter.detach()).copy_(local_tensor(weights.read(name, parameter)))

"""Checkpoints of a run: weights, their EMA and the optimizer state, as safetensors.

A checkpoint is written under a temporary name and renamed, so that a kill does not damage the previous one.
`state.json`, written last, lists the files with their sizes, so that a checkpoint that a power failure left
incomplete is recognized. Tensors are stored unsharded, so that a run can resume with another number of
processes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rvedit.io.errors import UserError
from rvedit.training.distributed import Processes, full_tensor, place_like
from rvedit.training.optimizers import NamedOptimizer

KEEP_CHECKPOINTS = 2
FILE_BYTES = 4_000_000_000
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


def save_checkpoint(
    folder: Path, state: RunState, optimizer: NamedOptimizer, ema: EMAModel | None, processes: Processes
) -> Path:
    """Write `folder/checkpoints/step_N`, delete old ones, return the new one. All processes call it.

    Raises UserError if it cannot be written; older checkpoints are kept then.
    """
    checkpoints = folder / "checkpoints"
    final = checkpoints / f"step_{state.step:08d}"
    part = final.with_suffix(".part")
    problem = ""
    if processes.is_main:
        problem = _attempt(lambda: _make_empty(part))
    groups: dict[str, Iterable[tuple[str, Tensor]]] = {
        "model": ((name, p.detach()) for name, p in optimizer.trained.items()),
        "optimizer": optimizer.named_state().items(),
    }
    if ema is not None:
        groups["average"] = zip(optimizer.trained, ema.shadow_params, strict=True)
    for group, tensors in groups.items():
        # Gathering shards is a collective operation, so it continues even if writing has failed.
        for number, chunk in enumerate(_chunks(tensors, keep=processes.is_main), start=1):
            if processes.is_main and not problem:
                file = part / f"{group}-{number:05d}.safetensors"
                problem = _attempt(lambda chunk=chunk, file=file: save_file(chunk, file))
    if processes.is_main and not problem:
        problem = _attempt(lambda: _finish(part, final, state))
    if processes.any(bool(problem)):
        if processes.is_main:
            shutil.rmtree(part, ignore_errors=True)
        raise UserError(
            f"{final}: the checkpoint could not be written ({problem or 'see the main process'}): make room "
            "or choose another `runs` folder, and run it again to resume from the previous checkpoint"
        )
    return final


def _attempt(action: object) -> str:
    """Run an action; return the reason if writing failed, else an empty string."""
    try:
        action()  # type: ignore[operator]
    except (OSError, SafetensorError) as error:
        return getattr(error, "strerror", None) or str(error).splitlines()[0]
    return ""


def _make_empty(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def _finish(part: Path, final: Path, state: RunState) -> None:
    sizes = {file.name: file.stat().st_size for file in sorted(part.iterdir())}
    (part / STATE).write_text(json.dumps({**asdict(state), "files": sizes}, indent=1), encoding="utf-8")
    if final.exists():
        shutil.rmtree(final)
    part.rename(final)
    for old in complete_checkpoints(final.parent.parent)[:-KEEP_CHECKPOINTS]:
        shutil.rmtree(old)


def _chunks(tensors: Iterable[tuple[str, Tensor]], keep: bool) -> Iterator[dict[str, Tensor]]:
    """Yield unsharded tensors on the CPU, about `FILE_BYTES` at a time; empty dicts without `keep`."""
    chunk: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        full = full_tensor(tensor)
        size += full.nbytes
        if keep:
            chunk[name] = full.cpu().contiguous()
        if size > FILE_BYTES:
            yield chunk
            chunk, size = {}, 0
    yield chunk


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
    """Restore weights, optimizer state and EMA in place; return the run's state."""
    state = _read_state(checkpoint)
    assert state is not None, checkpoint
    weights = dict(_tensors(checkpoint, "model"))
    if differing := sorted(weights.keys() ^ optimizer.trained.keys()):
        raise UserError(
            f"{checkpoint}: its parameters are not those of this recipe ({differing[0]} and "
            f"{len(differing) - 1} more): start over with `fresh`"
        )
    with torch.no_grad():
        for name, parameter in optimizer.trained.items():
            if weights[name].shape != parameter.shape:
                raise UserError(
                    f"{checkpoint}: {name} has shape {tuple(weights[name].shape)}, not "
                    f"{tuple(parameter.shape)} as in this recipe's model: start over with `fresh`"
                )
            parameter.copy_(place_like(weights[name], parameter))
    optimizer.load_named_state(dict(_tensors(checkpoint, "optimizer")))
    if ema is not None:
        shadow = dict(_tensors(checkpoint, "average"))
        ema.optimization_step = state.step - state.skipped
        ema.shadow_params = [place_like(shadow[name], p) for name, p in optimizer.trained.items()]
    return state


def _tensors(checkpoint: Path, group: str) -> Iterator[tuple[str, Tensor]]:
    for file in sorted(checkpoint.glob(f"{group}-*.safetensors")):
        with safe_open(file, "pt") as content:
            for name in content.keys():  # noqa: SIM118 (not a mapping)
                yield name, content.get_tensor(name)

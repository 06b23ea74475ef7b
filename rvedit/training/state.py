"""Checkpoints of a run: weights, their average and the optimizer's moments, as safetensors.

A checkpoint is written beside its final name and renamed, so a kill leaves the previous one whole;
`state.json`, written last, lists its files with their sizes, so one that a power cut tore is known as such.
Tensors are stored whole, whatever the number of processes and the way they shared them, so a run goes on
with another number.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
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

KEPT = 2
FILE_BYTES = 4_000_000_000
STATE = "state.json"


@dataclass(frozen=True)
class RunState:
    """Where a run stands, beside its tensors."""

    step: int
    """Optimizer steps done."""
    skipped: int = 0
    """Updates that were skipped, for a loss or a gradient that was not finite."""


def save_checkpoint(
    folder: Path, state: RunState, optimizer: NamedOptimizer, average: EMAModel | None, processes: Processes
) -> Path:
    """Write `folder/checkpoints/step_N`, keep the newest few, return the new one. All processes call it.

    Raises UserError where it cannot be written; older checkpoints are left alone then.
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
    if average is not None:
        groups["average"] = zip(optimizer.trained, average.shadow_params, strict=True)
    for group, tensors in groups.items():
        # Every process takes part in putting shards together, also when there is nothing left to write to.
        for number, whole_tensors in enumerate(_in_files(tensors, keep=processes.is_main), start=1):
            if processes.is_main and not problem:
                file = part / f"{group}-{number:05d}.safetensors"
                problem = _attempt(lambda tensors=whole_tensors, file=file: save_file(tensors, file))
    if processes.is_main and not problem:
        problem = _attempt(lambda: _finish(part, final, state))
    if processes.any(bool(problem)):
        if processes.is_main:
            shutil.rmtree(part, ignore_errors=True)
        raise UserError(
            f"{final}: the checkpoint could not be written ({problem or 'see the first process'}): make room "
            "or choose another --runs; the same command then goes on from the checkpoint before"
        )
    return final


def _attempt(action: object) -> str:
    """Run it; what went wrong with the disk, in words."""
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
    for old in whole_checkpoints(final.parent.parent)[:-KEPT]:
        shutil.rmtree(old)


def _in_files(tensors: Iterable[tuple[str, Tensor]], keep: bool) -> Iterator[dict[str, Tensor]]:
    """Whole tensors on the CPU, some gigabytes at a time."""
    held: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        full = full_tensor(tensor)
        size += full.nbytes
        if keep:
            held[name] = full.cpu().contiguous()
        if size > FILE_BYTES:
            yield held
            held, size = {}, 0
    yield held


def whole_checkpoints(folder: Path) -> list[Path]:
    """A run's checkpoints from old to new, without those that are torn."""
    found = sorted((folder / "checkpoints").glob("step_*[0-9]"))
    return [checkpoint for checkpoint in found if _read_state(checkpoint) is not None]


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run's folder."""
    return next(reversed(whole_checkpoints(folder)), None)


def _read_state(checkpoint: Path) -> RunState | None:
    """None where a file is missing or has not the size that it was written with."""
    try:
        content = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        sizes = content.pop("files")
        if any((checkpoint / name).stat().st_size != size for name, size in sizes.items()):
            return None
        return RunState(**content)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def load_checkpoint(checkpoint: Path, optimizer: NamedOptimizer, average: EMAModel | None) -> RunState:
    """Restore everything in place; return where the run stood."""
    state = _read_state(checkpoint)
    assert state is not None, checkpoint
    weights = dict(_tensors(checkpoint, "model"))
    if differing := sorted(weights.keys() ^ optimizer.trained.keys()):
        raise UserError(
            f"{checkpoint}: its parameters are not those of this recipe ({differing[0]} and "
            f"{len(differing) - 1} more): start anew with --fresh"
        )
    with torch.no_grad():
        for name, parameter in optimizer.trained.items():
            if weights[name].shape != parameter.shape:
                raise UserError(
                    f"{checkpoint}: {name} has shape {tuple(weights[name].shape)}, not "
                    f"{tuple(parameter.shape)}: it is of another architecture: start anew with --fresh"
                )
            parameter.copy_(place_like(weights[name], parameter))
    optimizer.load_named_state(dict(_tensors(checkpoint, "optimizer")))
    if average is not None:
        shadow = dict(_tensors(checkpoint, "average"))
        average.optimization_step = state.step - state.skipped
        average.shadow_params = [place_like(shadow[name], p) for name, p in optimizer.trained.items()]
    return state


def _tensors(checkpoint: Path, group: str) -> Iterator[tuple[str, Tensor]]:
    for file in sorted(checkpoint.glob(f"{group}-*.safetensors")):
        with safe_open(file, "pt") as content:
            for name in content.keys():  # noqa: SIM118 (no mapping)
                yield name, content.get_tensor(name)

"""Checkpoints of a run: weights, their average and the optimizer's moments, as safetensors.

A checkpoint is written beside its final name and renamed, so a kill leaves the previous one whole.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file

from rvedit.errors import UserError
from rvedit.training.optimizers import NamedOptimizer

KEPT = 2


def save_checkpoint(folder: Path, step: int, optimizer: NamedOptimizer, average: EMAModel | None) -> Path:
    """Write `folder/checkpoints/step_N`, keep the newest few, return the new one."""
    checkpoints = folder / "checkpoints"
    final = checkpoints / f"step_{step:08d}"
    part = final.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    weights = {name: p.detach() for name, p in optimizer.trained.items()}
    save_file(weights, part / "model.safetensors")
    save_file(optimizer.named_state(), part / "optimizer.safetensors")
    if average is not None:
        shadow = dict(zip(weights, average.shadow_params, strict=True))
        shadow["optimization_step"] = torch.tensor(average.optimization_step)
        save_file(shadow, part / "average.safetensors")
    shutil.rmtree(final, ignore_errors=True)
    part.rename(final)
    for old in sorted(checkpoints.glob("step_*[0-9]"))[:-KEPT]:
        shutil.rmtree(old)
    return final


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run's folder."""
    return max((folder / "checkpoints").glob("step_*[0-9]"), default=None)


def load_checkpoint(checkpoint: Path, optimizer: NamedOptimizer, average: EMAModel | None) -> int:
    """Restore everything in place; return the number of steps done."""
    weights = load_file(checkpoint / "model.safetensors")
    if weights.keys() != optimizer.trained.keys():
        differing = sorted(weights.keys() ^ optimizer.trained.keys())
        raise UserError(
            f"{checkpoint}: its parameters are not those of this recipe ({differing[0]} and "
            f"{len(differing) - 1} more): start anew with --fresh"
        )
    with torch.no_grad():
        for name, parameter in optimizer.trained.items():
            parameter.copy_(weights[name])
    optimizer.load_named_state(load_file(checkpoint / "optimizer.safetensors"))
    if average is not None:
        shadow = load_file(checkpoint / "average.safetensors")
        average.optimization_step = int(shadow.pop("optimization_step"))
        average.shadow_params = [shadow[name].to(p.device) for name, p in optimizer.trained.items()]
    return int(checkpoint.name.removeprefix("step_"))

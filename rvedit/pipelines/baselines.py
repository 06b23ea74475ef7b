"""The other models of Table 1 that diffusers runs: Lucy-Edit, VACE, and Ditto's adapters on VACE."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, LucyEditPipeline, WanVACEPipeline

from rvedit.io.errors import UserError
from rvedit.pipelines.adapters import add_adapters
from rvedit.pipelines.checkpoints import check_components, find_checkpoint


@dataclass(frozen=True)
class NativeFormat:
    """The clips that a model was trained on."""

    height: int
    width: int
    num_frames: int
    frame_rate: float

    def size(self, height: int, width: int, grid: int) -> tuple[int, int]:
        """Return the native size, in portrait or landscape, for frames of about its aspect ratio.

        For other frames: a size of the same area and their aspect ratio, in multiples of `grid`.
        """
        shape = (self.height, self.width) if width >= height else (self.width, self.height)
        if abs(np.log(width / height) - np.log(shape[1] / shape[0])) < 0.1:
            return shape
        scale = (self.height * self.width / (height * width)) ** 0.5
        rows, columns = (max(1, round(side * scale / grid)) * grid for side in (height, width))
        return rows, columns

    def frame_step(self, frame_rate: float | None) -> float:
        """Return the source's frames per frame that the model sees: 1 for sources up to the native rate."""
        return max(1.0, (frame_rate or 0.0) / self.frame_rate)


@dataclass(frozen=True)
class Capabilities:
    """What a model reads beside a clip and an instruction."""

    description: bool = False
    """A description of the result, which it reads instead of the instruction."""
    mask: bool = False

    def check(self, config: Any) -> None:
        """Raise UserError for a missing `description`, and for settings of `config` that are not read."""
        if self.description and not config.description:
            raise UserError(
                "`description`: this model reads a description of the result, not an instruction: give one"
            )
        if config.description and not self.description:
            raise UserError("`description`: this model reads the instruction: leave it out, or use vace")
        if config.mask and not self.mask:
            raise UserError(
                "`mask`: this model reads none: say in the instruction where to edit, or use vace or ditto"
            )


NO_CAPABILITIES = Capabilities()
"""RVEDiT's."""


@dataclass(frozen=True)
class BaselineSpec:
    """A model of Table 1."""

    weights: str
    """Hub id."""
    native: NativeFormat
    variable: str
    """Environment variable that names other weights."""
    capabilities: Capabilities
    adapters: str | None = None
    """Hub id of LoRA weights that are added."""


BASELINES = {
    "lucy": BaselineSpec(
        "decart-ai/Lucy-Edit-1.1-Dev", NativeFormat(480, 832, 81, 24.0), "RVEDIT_LUCY", Capabilities()
    ),
    "vace": BaselineSpec(
        "Wan-AI/Wan2.1-VACE-14B-diffusers",
        NativeFormat(720, 1280, 81, 16.0),
        "RVEDIT_VACE",
        Capabilities(description=True, mask=True),
    ),
    "ditto": BaselineSpec(
        "Wan-AI/Wan2.1-VACE-14B-diffusers",
        NativeFormat(480, 832, 73, 20.0),
        "RVEDIT_VACE",
        Capabilities(mask=True),  # the adapters were trained on instructions
        "QingyanBai/Ditto_models",
    ),
}
"""By name of the model."""

BASELINE_CLASSES = {"LucyEditPipeline": "lucy", "WanVACEPipeline": "vace"}
"""The baseline that a pipeline's class stands for, unless it was loaded as another."""


def baseline_spec(pipe: Any) -> BaselineSpec:
    """Return the spec of a pipeline. Raises ValueError for one that does not edit."""
    name = getattr(pipe, "rvedit_baseline", None) or BASELINE_CLASSES.get(type(pipe).__name__)
    if name is None:
        known = ", ".join(["RVEDiTPipeline", *BASELINE_CLASSES])
        raise ValueError(f"a {type(pipe).__name__} does not edit video here: give one of {known}")
    return BASELINES[name]


def capabilities(pipe: Any) -> Capabilities:
    """Return what a pipeline reads; RVEDiT's reads neither a description nor a mask."""
    return NO_CAPABILITIES if type(pipe).__name__ == "RVEDiTPipeline" else baseline_spec(pipe).capabilities


def load_baseline(name: str, dtype: torch.dtype) -> Any:
    """Load `lucy`, `vace` or `ditto`, from the hub or from the folder that its variable names."""
    spec = BASELINES[name]
    folder = find_checkpoint(os.environ.get(spec.variable) or spec.weights, spec.variable)
    pipe = load_baseline_folder(folder, name, dtype)
    if spec.adapters:
        adapters = os.environ.get("RVEDIT_DITTO") or spec.adapters
        add_adapters(pipe.transformer, _adapter(find_checkpoint(adapters, "RVEDIT_DITTO")))
    return pipe


def load_baseline_folder(folder: Path, name: str, dtype: torch.dtype) -> Any:
    """Load a folder of Lucy's or VACE's pipeline as the named baseline; the VAE in fp32."""
    if importlib.util.find_spec("ftfy") is None:
        raise UserError(f"{name}: its pipeline needs ftfy: pip install 'rvedit[editors]'")
    check_components(folder)
    try:
        pipe = DiffusionPipeline.from_pretrained(folder, dtype={"default": dtype, "vae": torch.float32})
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{folder}: cannot be loaded: {str(error).splitlines()[0]}") from None
    if not isinstance(pipe, (LucyEditPipeline, WanVACEPipeline)):
        raise UserError(f"{folder}: a {type(pipe).__name__}, which does not edit video here")
    pipe.rvedit_baseline = name
    return pipe


def _adapter(file: Path) -> Path:
    """Return the file of LoRA weights: the named one, or Ditto's for global edits in a folder."""
    if file.is_file():
        return file
    found = sorted(
        path for path in file.glob("**/*.safetensors") if "global" in path.name and "style" not in path.name
    )
    if not found:
        raise UserError(f"{file}: holds no adapters of global edits: name a file with RVEDIT_DITTO")
    return found[0]

"""Baselines of Table 1 that run in diffusers: Lucy-Edit, VACE, and VACE with Ditto's LoRA weights."""

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
from rvedit.pipelines.adapters import add_lora_weights
from rvedit.pipelines.checkpoints import check_components, find_checkpoint
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline


@dataclass(frozen=True)
class NativeFormat:
    """The size, length and frame rate of the clips that a model was trained on."""

    height: int
    width: int
    num_frames: int
    frame_rate: float

    def size(self, height: int, width: int, grid: int) -> tuple[int, int]:
        """Return the native size, landscape or portrait, if the frames have about its aspect ratio.

        Otherwise return a size of the same area with the frames' aspect ratio, in multiples of `grid`.
        """
        shape = (self.height, self.width) if width >= height else (self.width, self.height)
        if abs(np.log(width / height) - np.log(shape[1] / shape[0])) < 0.1:
            return shape
        scale = (self.height * self.width / (height * width)) ** 0.5
        rows, columns = (max(1, round(side * scale / grid)) * grid for side in (height, width))
        return rows, columns

    def frame_step(self, frame_rate: float | None) -> float:
        """Return the number of source frames per model frame: 1 up to the native frame rate."""
        return max(1.0, (frame_rate or 0.0) / self.frame_rate)


@dataclass(frozen=True)
class Capabilities:
    """The inputs of a model beside the clip."""

    description: bool = False
    """It reads a description of the result instead of the instruction."""
    mask: bool = False
    """It reads the mask; with every model, nothing changes outside it."""
    reference_image: bool = False
    """It reads a picture of what the instruction refers to."""

    def check(self, config: Any) -> None:
        """Raise UserError if `config` lacks a `description` or has a setting that the model ignores."""
        if self.description and not config.description:
            raise UserError(
                "`description`: this model reads a description of the result, not an instruction: give one"
            )
        if config.description and not self.description:
            raise UserError("`description`: this model reads the instruction only: omit it, or use vace")
        if config.reference_image is not None and not self.reference_image:
            raise UserError("`reference_image`: this model reads none: omit it, or use one that does")


@dataclass(frozen=True)
class BaselineSpec:
    """The weights and inputs of a model of Table 1."""

    weights: str
    """Hub id."""
    native: NativeFormat
    variable: str
    """Environment variable that overrides `weights`."""
    capabilities: Capabilities
    lora_weights: str | None = None
    """Hub id of additional LoRA weights."""


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
        Capabilities(mask=True),  # its LoRA weights were trained on instructions
        "QingyanBai/Ditto_models",
    ),
}
"""Specs by baseline name."""

BASELINE_CLASSES = {"LucyEditPipeline": "lucy", "WanVACEPipeline": "vace"}
"""Baseline names by pipeline class; `load_baseline_folder` can override them."""


def baseline_spec(pipe: Any) -> BaselineSpec:
    """Return the spec of a baseline pipeline. Raises ValueError for other pipelines."""
    name = getattr(pipe, "rvedit_baseline", None) or BASELINE_CLASSES.get(type(pipe).__name__)
    if name is None:
        supported = ", ".join(["RVEDiTPipeline", *BASELINE_CLASSES])
        raise ValueError(f"a {type(pipe).__name__} is not a supported editing pipeline: use {supported}")
    return BASELINES[name]


def capabilities(pipe: Any) -> Capabilities:
    """Return the capabilities of a pipeline."""
    if isinstance(pipe, RVEDiTPipeline):
        return Capabilities(reference_image=pipe.reads_reference_images)
    return baseline_spec(pipe).capabilities


def load_baseline(name: str, dtype: torch.dtype) -> Any:
    """Load `lucy`, `vace` or `ditto` from the hub or from the folder in its environment variable."""
    spec = BASELINES[name]
    folder = find_checkpoint(os.environ.get(spec.variable) or spec.weights, spec.variable)
    pipe = load_baseline_folder(folder, name, dtype)
    if spec.lora_weights:
        path = find_checkpoint(os.environ.get("RVEDIT_DITTO") or spec.lora_weights, "RVEDIT_DITTO")
        add_lora_weights(pipe.transformer, _lora_file(path))
    return pipe


def load_baseline_folder(folder: Path, name: str, dtype: torch.dtype) -> Any:
    """Load a Lucy or VACE pipeline from a folder as baseline `name`, with the VAE in fp32."""
    if importlib.util.find_spec("ftfy") is None:
        raise UserError(f"{name}: needs the package ftfy: pip install 'rvedit[editors]'")
    check_components(folder)
    try:
        pipe = DiffusionPipeline.from_pretrained(folder, dtype={"default": dtype, "vae": torch.float32})
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{folder}: cannot be loaded: {str(error).splitlines()[0]}") from None
    if not isinstance(pipe, (LucyEditPipeline, WanVACEPipeline)):
        raise UserError(f"{folder}: a {type(pipe).__name__} is not a supported editing pipeline")
    pipe.rvedit_baseline = name
    return pipe


def _lora_file(path: Path) -> Path:
    """Return `path` if it is a file, else Ditto's LoRA weights for global edits in that folder."""
    if path.is_file():
        return path
    files = sorted(
        file for file in path.glob("**/*.safetensors") if "global" in file.name and "style" not in file.name
    )
    if not files:
        raise UserError(f"{path}: no LoRA weights for global edits: set RVEDIT_DITTO to a safetensors file")
    return files[0]

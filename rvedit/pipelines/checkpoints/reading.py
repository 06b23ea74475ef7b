"""Detection of a checkpoint's format, and loading with the matching reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from rvedit.io.errors import UserError
from rvedit.pipelines.checkpoints import kiwi_edit, wan
from rvedit.pipelines.checkpoints.files import pipeline_kind, read_config
from rvedit.pipelines.checkpoints.folder import load_own
from rvedit.pipelines.checkpoints.quantized_files import SUFFIXES
from rvedit.pipelines.model_card import KIWI, QWEN, WAN, Provenance
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline

Kind = Literal["own", "kiwi", "kiwi file", "wan", "wan original", "wan file"]
_BY_PIPELINE: dict[str, Kind] = {
    "RVEDiTPipeline": "own",
    "KiwiEditPipeline": "kiwi",
    "WanPipeline": "wan",
    "WanImageToVideoPipeline": "wan",
}
_FOLDER_READERS: dict[Kind, Callable[[Path, torch.dtype, Path | None], RVEDiTPipeline]] = {
    "own": load_own,
    "kiwi": kiwi_edit.load_folder,
    "wan": wan.load_folder,
}
_READERS: dict[Kind, Callable[[Path, torch.dtype], RVEDiTPipeline]] = {
    "kiwi file": kiwi_edit.load_file,
    "wan original": wan.load_original,
    "wan file": wan.load_file,
}


def load_checkpoint(
    path: Path, dtype: torch.dtype = torch.float32, transformer: Path | None = None
) -> RVEDiTPipeline:
    """Load a checkpoint of any supported format, without a progress bar of its own.

    `transformer` is a file with the transformer's weights, also quantized, instead of a folder's own.

    Raises UserError for other formats and for incomplete checkpoints.
    """
    kind = checkpoint_kind(path)
    if kind in _FOLDER_READERS:
        pipeline = _FOLDER_READERS[kind](path, dtype, transformer)
    elif transformer is not None:
        raise UserError(f"`transformer` {transformer}: needs a folder in diffusers' format as the model")
    else:
        pipeline = _READERS[kind](path, dtype)
    pipeline.set_progress_bar_config(disable=True)
    if kind != "own":
        pipeline.provenance = Provenance(base=(KIWI, WAN, QWEN) if kind.startswith("kiwi") else (WAN, QWEN))
    return pipeline


def reads_reference_images(path: Path) -> bool:
    """Return whether a checkpoint was trained with reference images, from its config alone."""
    kind = checkpoint_kind(path)
    if kind == "own":
        config = read_config(path / "transformer" / "config.json")
        return bool(config.get("reads_reference_images"))
    return kind.startswith("kiwi") and kiwi_edit.reads_reference_images(path)


def checkpoint_kind(path: Path) -> Kind:
    """Return the format of a folder or file. Raises UserError for an unsupported one."""
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise UserError(f"{path}: not a safetensors file: give a .safetensors or .gguf file, or a folder")
        if path.suffix.lower() == ".gguf":
            return "wan file"
        return "kiwi file" if kiwi_edit.is_trained_file(path) else "wan file"
    if not (path / "model_index.json").is_file():
        if wan.is_original(path):
            return "wan original"
        raise UserError(f"{path}: not a checkpoint: model_index.json is missing")
    pipeline = pipeline_kind(path)
    if pipeline not in _BY_PIPELINE:
        raise UserError(f"{path}: {pipeline} is not supported: give RVEDiT, Wan2.2-TI2V-5B or Kiwi-Edit")
    return _BY_PIPELINE[pipeline]

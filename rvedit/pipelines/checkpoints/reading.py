"""What a folder or file is, and who reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from rvedit.io.errors import UserError
from rvedit.pipelines.checkpoints import kiwi_edit, wan
from rvedit.pipelines.checkpoints.files import pipeline_kind, read_config
from rvedit.pipelines.checkpoints.folder import load_own
from rvedit.pipelines.model_card import KIWI, QWEN, WAN, Provenance
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline, from_version_0_1

Kind = Literal["own", "kiwi", "kiwi file", "wan", "wan original", "wan file"]
_BY_PIPELINE: dict[str, Kind] = {
    "RVEDiTPipeline": "own",
    "KiwiEditPipeline": "kiwi",
    "WanPipeline": "wan",
    "WanImageToVideoPipeline": "wan",
}
_READERS: dict[Kind, Callable[[Path, torch.dtype], RVEDiTPipeline]] = {
    "kiwi": kiwi_edit.load_folder,
    "kiwi file": kiwi_edit.load_file,
    "wan": wan.load_folder,
    "wan original": wan.load_original,
    "wan file": wan.load_file,
}


def load_checkpoint(path: Path, dtype: torch.dtype = torch.float32) -> RVEDiTPipeline:
    """Read a checkpoint of any kind that we know; one that is none, or not whole, is a UserError."""
    kind = checkpoint_kind(path)
    if kind == "own":
        pipeline = load_own(path, from_version_0_1(read_config(path / "model_index.json")), dtype)
        pipeline.provenance = Provenance.read(path)
        return pipeline
    pipeline = _READERS[kind](path, dtype)
    pipeline.provenance = Provenance(base=(KIWI, WAN, QWEN) if kind.startswith("kiwi") else (WAN, QWEN))
    return pipeline


def checkpoint_kind(path: Path) -> Kind:
    """What a folder or file is. Raises UserError where that is nothing we read."""
    if path.is_file():
        if path.suffix != ".safetensors":
            raise UserError(f"{path}: weights are read from safetensors files and folders only")
        return "kiwi file" if kiwi_edit.is_trained_file(path) else "wan file"
    if not (path / "model_index.json").is_file():
        if wan.is_original(path):
            return "wan original"
        raise UserError(f"{path}: not a checkpoint of rvedit: it has no model_index.json")
    pipeline = pipeline_kind(path)
    if pipeline not in _BY_PIPELINE:
        raise UserError(
            f"{path}: a checkpoint of {pipeline}, not of RVEDiTPipeline, Wan2.2-TI2V-5B or Kiwi-Edit"
        )
    return _BY_PIPELINE[pipeline]

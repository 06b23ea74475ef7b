"""What a folder or file is, and who reads it."""

from __future__ import annotations

from pathlib import Path

import torch

from rvedit.checkpoints import kiwi, wan
from rvedit.checkpoints.files import pipeline_kind, read_config
from rvedit.checkpoints.own import load_own
from rvedit.errors import UserError
from rvedit.pipeline import RVEDiTPipeline
from rvedit.provenance import KIWI, QWEN, WAN, Provenance

_WAN = ("WanPipeline", "WanImageToVideoPipeline")


def load_pipeline(path: Path, dtype: torch.dtype = torch.float32) -> RVEDiTPipeline:
    """Read a checkpoint of any kind that we know; one that is none, or not whole, is a UserError."""
    pipeline, base = _load(path, dtype)
    pipeline.provenance = Provenance(base=base) if base else Provenance.read(path)
    return pipeline


def _load(path: Path, dtype: torch.dtype) -> tuple[RVEDiTPipeline, tuple[str, ...]]:
    """The pipeline, and what it was made from where its folder does not say."""
    if path.is_file():
        if path.suffix != ".safetensors":
            raise UserError(f"{path}: weights are read from safetensors files and folders only")
        if kiwi.is_trained_file(path):
            return kiwi.load_file(path, dtype), (KIWI, WAN, QWEN)
        return wan.load_file(path, dtype), (WAN, QWEN)
    if not (path / "model_index.json").is_file():
        if wan.is_original(path):
            return wan.load_original(path, dtype), (WAN, QWEN)
        raise UserError(f"{path}: not a checkpoint of rvedit: it has no model_index.json")
    kind = pipeline_kind(path)
    if kind == "RVEDiTPipeline":
        return load_own(path, read_config(path / "model_index.json"), dtype), ()
    if kind == "KiwiEditPipeline":
        return kiwi.load_folder(path, dtype), (KIWI, WAN, QWEN)
    if kind in _WAN:
        return wan.load_folder(path, dtype), (WAN, QWEN)
    raise UserError(f"{path}: a checkpoint of {kind}, not of RVEDiTPipeline, Wan2.2-TI2V-5B or Kiwi-Edit")

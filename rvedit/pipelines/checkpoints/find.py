"""Resolution of checkpoint names: the embedded nano, a local path, or a hub id."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rvedit import NANO
from rvedit.io.errors import UserError

WAN = {48: "Wan-AI/Wan2.2-TI2V-5B-Diffusers", 16: "Wan-AI/Wan2.1-T2V-14B-Diffusers"}
"""Hub ids of the backbones, by the channels of their latents, for modules that a checkpoint lacks."""
MLLM = "Qwen/Qwen2.5-VL-3B-Instruct"

_IGNORED_FILES = ("*.pth", "*.pt", "*.bin", "*.ckpt", "*.gguf", "*.mp4", "*.gif", "*.png", "*.jpg")
"""Not downloaded from the hub: weights are read from safetensors only."""


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form `owner/name` of a hub id and is not a local path."""
    has_form = name.count("/") == 1 and not name.startswith(("/", ".", "~", "runs/"))
    is_file = Path(name).suffix.lower() in (".safetensors", ".gguf")
    return has_form and not is_file and not Path(name).exists()


def find_checkpoint(name: str, parameter: str = "`model`") -> Path:
    """Return the folder or file of a checkpoint; a hub id is downloaded.

    Args:
        name: `nano`, a folder or file, a training run's folder, or a hub id.
        parameter: where the name comes from, for error messages.
    """
    if name == "nano":
        return NANO
    path = Path(name).expanduser()
    if (path / "model" / "model_index.json").is_file() or (path / "model" / "vae").is_dir():
        return path / "model"
    if path.is_dir() or path.is_file():
        return path
    if not is_hub_id(name):
        raise UserError(f"{parameter} {name}: no such folder: give nano, a local path or a hub id owner/name")
    return download(name, parameter, ignore_patterns=list(_IGNORED_FILES))


def find_transformer_file(name: Path | str) -> Path:
    """Return the path of a file with a transformer's weights. Raises UserError if it has another form."""
    path = Path(name).expanduser()
    if path.suffix.lower() not in (".safetensors", ".gguf"):
        raise UserError(f"`transformer` {name}: give a .safetensors or .gguf file")
    if not path.is_file():
        raise UserError(f"`transformer` {name}: no such file: download it first")
    return path


def download(name: str, parameter: str, **patterns: Any) -> Path:
    """Return the folder of a downloaded hub id; `patterns` choose its files. Raises UserError."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, **patterns))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if type(error).__name__ == "GatedRepoError":
            reason = f"access is gated: accept the terms on https://huggingface.co/{name} and set HF_TOKEN"
        raise UserError(
            f"{parameter} {name}: not a local folder, and cannot be downloaded from the hub: {reason}"
        ) from None


def base_wan(latent_channels: int = 48) -> Path:
    """Return the folder of the backbone, for modules that a checkpoint lacks: RVEDIT_WAN or the hub's.

    The number of latent channels tells Wan2.2-TI2V-5B, 48, from Wan2.1-T2V-14B, 16.
    """
    return find_checkpoint(os.environ.get("RVEDIT_WAN") or WAN.get(latent_channels, WAN[48]), "RVEDIT_WAN")


def base_mllm() -> Path:
    """Return the folder of Qwen2.5-VL, for checkpoints without an MLLM: RVEDIT_MLLM or the hub's."""
    return find_checkpoint(os.environ.get("RVEDIT_MLLM") or MLLM, "RVEDIT_MLLM")

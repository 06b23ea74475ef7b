"""Where a checkpoint lies: in the package, in a folder or file, or on the hub."""

from __future__ import annotations

import os
from pathlib import Path

from rvedit import NANO
from rvedit.io.errors import UserError

WAN, MLLM = "Wan-AI/Wan2.2-TI2V-5B-Diffusers", "Qwen/Qwen2.5-VL-3B-Instruct"
"""The hub's ids of what other checkpoints lack."""


UNREAD = ("*.pth", "*.pt", "*.bin", "*.ckpt", "*.gguf", "*.mp4", "*.gif", "*.png", "*.jpg")
"""What is not fetched from the hub: weights are read from safetensors alone."""


def is_hub_id(name: str) -> bool:
    """Whether a name can only be `owner/name` on the hub: there is no such folder, and it is not like one."""
    is_like_one = name.count("/") == 1 and not name.startswith(("/", ".", "~", "runs/"))
    return is_like_one and Path(name).suffix != ".safetensors" and not Path(name).exists()


def find_checkpoint(name: str, option: str = "--model") -> Path:
    """The folder or file of a checkpoint: `nano`, a path, a run's folder, or a hub id, which is fetched.

    `option` is how the user said it, for the error.
    """
    if name == "nano":
        return NANO
    path = Path(name).expanduser()
    if (path / "model" / "model_index.json").is_file() or (path / "model" / "vae").is_dir():
        return path / "model"
    if path.is_dir() or path.is_file():
        return path
    if not is_hub_id(name):
        raise UserError(
            f"{option} {name}: no such folder: give nano, a folder with a checkpoint, or a hub id owner/name"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, ignore_patterns=list(UNREAD)))
    except Exception as error:
        raise UserError(
            f"{option} {name}: not a folder here, and not to be had from the hub: {_reason(name, error)}"
        ) from None


def companion_wan() -> Path:
    """Wan2.2-TI2V-5B, for the parts that a checkpoint lacks: RVEDIT_WAN, or from the hub."""
    return find_checkpoint(os.environ.get("RVEDIT_WAN") or WAN, "RVEDIT_WAN")


def companion_mllm() -> Path:
    """Qwen2.5-VL, for a checkpoint without a multimodal LLM: RVEDIT_MLLM, or from the hub."""
    return find_checkpoint(os.environ.get("RVEDIT_MLLM") or MLLM, "RVEDIT_MLLM")


def _reason(name: str, error: Exception) -> str:
    if type(error).__name__ == "GatedRepoError":
        return f"its owners want to be asked: accept the terms on https://huggingface.co/{name}, set HF_TOKEN"
    return (str(error).strip() or type(error).__name__).splitlines()[0]

"""Quantized weights of a transformer: GGUF files, and safetensors in fp8 as for ComfyUI.

The matrices of the blocks, nearly all of the weights, stay as the file has them and are converted layer by
layer in each pass. All other tensors are converted when they are read.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from rvedit.compat import convert_wan_keys, gguf_shapes, read_gguf
from rvedit.io.errors import UserError
from rvedit.models.quantized_linear import FP8, dequantize, is_quantized, with_scale
from rvedit.pipelines.checkpoints.files import check_file, read_shapes, read_weights, weight_files

SUFFIXES = (".safetensors", ".gguf")
"""Suffixes of single files of a transformer."""
_EMBEDDERS = ("source_embedder", "visual_embedder", "reference_embedder")
_PREFIXES = ("model.diffusion_model.", "diffusion_model.")
_SCALES = (".scale_weight", ".weight_scale")
_IGNORED = (".scale_input", ".input_scale", ".comfy_quant")
"""Scales of activations, which are not quantized here, and descriptions."""


def read_transformer_file(file: Path) -> dict[str, Tensor]:
    """Return a transformer's weights under diffusers' names, from a file with those or with Wan's own.

    Raises UserError for a damaged file, and if the package for GGUF is missing.
    """
    tensors: dict[str, Tensor] = {}
    scales: dict[str, Tensor] = {}
    for key, tensor in _read(file).items():
        key = _without_prefix(key)
        if key.endswith(_SCALES):
            scales[f"{key.rpartition('.')[0]}.weight"] = tensor
        elif key != "scaled_fp8" and not key.endswith(_IGNORED):
            tensors[key] = tensor
    for key, scale in scales.items():
        weight = tensors.get(key)
        if weight is None or weight.dtype not in FP8 or scale.numel() not in (1, len(weight)):
            raise UserError(
                f"{file}: {key} is quantized in a way that is not supported: give fp8 with one scale for a "
                "matrix or one for each row, or GGUF"
            )
        with_scale(weight, scale)
    for key, tensor in tensors.items():
        if not (tensor.is_floating_point() or is_quantized(tensor)):
            raise UserError(f"{file}: {key} holds integers, which are not supported: give fp8 or GGUF")
    tensors = to_diffusers_keys(tensors)
    return {key: _converted(key, tensor) for key, tensor in tensors.items()}


def transformer_shapes(file: Path) -> dict[str, Tensor]:
    """Return a transformer's tensors on the meta device, with the key names of the file's header."""
    if file.suffix.lower() != ".gguf":
        return {_without_prefix(key): tensor for key, tensor in read_shapes([file]).items()}
    with _gguf_errors(file):
        shapes = gguf_shapes(file)
    return {_without_prefix(key): torch.empty(shape, device="meta") for key, shape in shapes.items()}


def is_quantized_file(path: Path) -> bool:
    """Return whether a path is a GGUF file, or a safetensors file with tensors in fp8."""
    if not path.is_file() or path.suffix.lower() == ".gguf":
        return path.is_file()
    with safe_open(path, "pt") as content:
        kinds = (content.get_slice(key).get_dtype() for key in content.keys())  # noqa: SIM118
        return any(kind.startswith("F8_") for kind in kinds)


def transformer_weights(folder: Path, file: Path | None) -> dict[str, Tensor]:
    """Return a transformer's weights from a file, or from the folder of a pipeline in diffusers' format."""
    if file is None:
        return read_weights(weight_files(folder / "transformer"))
    return read_transformer_file(file)


def to_diffusers_keys(state: dict[str, Any]) -> dict[str, Any]:
    """Return a transformer's state under diffusers' key names, from these or from Wan's own."""
    if any("condition_embedder" in key for key in state):
        return state
    return convert_wan_keys(dict(state))


def add_embedders(state: dict[str, Tensor], folder: Path, reads_reference_images: bool) -> None:
    """Add the embedders that Wan does not have, if a state lacks them, from a folder of RVEDiT."""
    if all(f"{name}.weight" in state for name in _EMBEDDERS[: 3 if reads_reference_images else 2]):
        return
    for file in weight_files(folder / "transformer"):
        with safe_open(file, "pt") as content:
            for key in content.keys():  # noqa: SIM118
                if key.startswith(_EMBEDDERS) and key not in state:
                    state[key] = content.get_tensor(key)


def _without_prefix(key: str) -> str:
    return next((key.removeprefix(prefix) for prefix in _PREFIXES if key.startswith(prefix)), key)


def _converted(key: str, tensor: Tensor) -> Tensor:
    """Return a tensor in fp32 if it is quantized and no matrix of a block."""
    is_matrix = key.startswith("blocks.") and key.endswith(".weight") and tensor.ndim == 2
    return dequantize(tensor) if is_quantized(tensor) and not is_matrix else tensor


def _read(file: Path) -> dict[str, Tensor]:
    if file.suffix.lower() != ".gguf":
        check_file(file)
        return read_weights([file])
    with _gguf_errors(file):
        return read_gguf(file)


@contextmanager
def _gguf_errors(file: Path) -> Iterator[None]:
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"{file}: needs the package gguf: pip install 'rvedit[gguf]'")
    try:
        yield
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{file}: not a complete GGUF file of supported types ({reason})") from None

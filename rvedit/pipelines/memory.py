"""Where an editor's weights lie, and in how many bits: for cards that are smaller than the model."""

from __future__ import annotations

import importlib
import importlib.util
import re
from typing import Any, Literal, get_args

import torch
from diffusers.hooks import apply_layerwise_casting
from torch import nn

from rvedit.io.errors import UserError

Offload = Literal["auto", "none", "model", "group"]
Quantize = Literal["int8", "fp8", "nf4"]
OFFLOADS: tuple[Offload, ...] = get_args(Offload)
QUANTIZATIONS: tuple[Quantize, ...] = get_args(Quantize)
_UNCAST = ("norm", r"\bwo\b")
"""Layers that fp8 leaves: umT5 looks at the dtype of its wo before it is called."""
BITS: dict[Quantize, float] = {"int8": 8.0, "fp8": 8.0, "nf4": 4.5}
"""Of a weight in a large matrix, its scales included."""


_PACKAGES: dict[str | None, str] = {"int8": "torchao", "nf4": "bitsandbytes"}
WEIGHTS_SHARE = 0.5
"""Of a device's free memory that weights may fill before they take turns: an edit wants about as much again
(53 GB beside 32 GB of weights, at 81 x 704 x 1280)."""


def check_placement(offload: str, quantization: str | None) -> None:
    """Raises UserError for what is none of the above."""
    if offload not in OFFLOADS:
        raise UserError(f"`offload` {offload}: choose one of {', '.join(OFFLOADS)}")
    if quantization is not None and quantization not in QUANTIZATIONS:
        raise UserError(f"`quantization` {quantization}: choose one of {', '.join(QUANTIZATIONS)}")


def check_packages(quantization: Quantize | None) -> None:
    """Raises UserError where a package that it needs is not installed."""
    package = _PACKAGES.get(quantization)
    if package and importlib.util.find_spec(package) is None:
        raise UserError(f"`quantization` {quantization}: needs {package}: pip install 'rvedit[quantize]'")


def transformer_stacks(pipeline: Any) -> dict[str, nn.Module]:
    """The layers that hold nearly all of the weights, by component."""
    found: dict[str, nn.Module] = {}
    if getattr(pipeline, "transformer", None) is not None:
        found["transformer"] = pipeline.transformer.blocks
        if hints := getattr(pipeline.transformer, "vace_blocks", None):
            found["transformer"] = nn.ModuleList([pipeline.transformer.blocks, hints])
    if getattr(pipeline, "mllm", None) is not None:
        found["mllm"] = pipeline.mllm.model.language_model.layers
    if getattr(pipeline, "text_encoder", None) is not None:
        found["text_encoder"] = pipeline.text_encoder.encoder.block
    return found


def quantized_layers(stack: nn.Module, kind: Quantize) -> list[nn.Linear]:
    """The matrices of a stack that `quantize` stores in fewer bits."""
    return [
        layer
        for name, layer in stack.named_modules()
        if isinstance(layer, nn.Linear)
        and not (kind == "fp8" and any(re.search(kept, name) for kept in _UNCAST))
    ]


def quantize(pipeline: Any, kind: Quantize, device: torch.device) -> None:
    """Store the matrices of the large stacks in 8 or 4 bits; products are still of the model's own dtype."""
    check_packages(kind)
    for stack in transformer_stacks(pipeline).values():
        dtype = next(p.dtype for p in stack.parameters() if p.is_floating_point())
        if kind == "fp8":
            apply_layerwise_casting(stack, torch.float8_e4m3fn, dtype, skip_modules_pattern=_UNCAST)
        elif kind == "int8":
            torchao = importlib.import_module("torchao.quantization")
            torchao.quantize_(stack, torchao.Int8WeightOnlyConfig(version=2))
        else:
            _to_nf4(stack, dtype, device)


def choose_offload(weight_bytes: float, free_bytes: float) -> Offload:
    """What `auto` means: all components stay where that leaves room to compute, else they take turns."""
    return "none" if weight_bytes <= WEIGHTS_SHARE * free_bytes else "model"


def free_bytes(device: torch.device) -> float:
    """What is free on an accelerator; a CPU's memory is not counted."""
    return float(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else float("inf")


def usable_bytes(device: torch.device) -> float:
    """What an accelerator has beside other programs: what is free, and what this one holds."""
    return free_bytes(device) + (torch.cuda.memory_reserved(device) if device.type == "cuda" else 0)


def _weight_bytes(pipeline: Any) -> int:
    modules = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    return sum(p.numel() * p.element_size() for module in modules for p in module.parameters())


def place(pipeline: Any, device: torch.device, offload: Offload) -> None:
    """Put a pipeline on its device: whole, component by component as they are needed, or layer by layer."""
    if offload == "auto":
        offload = choose_offload(_weight_bytes(pipeline), free_bytes(device))
    if offload == "none":
        pipeline.to(device)
    elif offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    else:
        # On an accelerator the next layer is fetched while one computes.
        stream = device.type == "cuda"
        pipeline.enable_group_offload(device, offload_type="leaf_level", use_stream=stream)


def _to_nf4(stack: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    bnb = importlib.import_module("bitsandbytes")
    for parent in list(stack.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear:
                small = bnb.nn.Linear4bit(
                    layer.in_features, layer.out_features, layer.bias is not None, dtype, quant_type="nf4"
                )
                small.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
                if layer.bias is not None:
                    small.bias = layer.bias
                setattr(parent, name, small.to(device))  # moving is what packs them

"""Offloading and quantization, for GPUs with less memory than the model needs."""

from __future__ import annotations

import importlib
import importlib.util
import re
from typing import Any, Literal, get_args

import torch
from diffusers.hooks import apply_layerwise_casting
from torch import nn

from rvedit.io.errors import UserError, check_choice
from rvedit.models import quantized_linear

Offload = Literal["auto", "none", "model", "group"]
Quantize = Literal["int8", "fp8", "nf4"]
BITS: dict[Quantize, float] = {"int8": 8.0, "fp8": 8.0, "nf4": 4.5}
"""Bits per quantized weight, including scales."""
_FP8_SKIPPED = ("norm", r"\bwo\b")
"""Layers that fp8 does not cast: umT5 checks the dtype of wo's weight before it calls wo."""
_PACKAGES: dict[str | None, str] = {"int8": "torchao", "nf4": "bitsandbytes"}
_MAX_WEIGHTS_FRACTION = 0.5
"""Fraction of free memory that weights may fill without offloading: activations need about as much again
(53 GB besides 32 GB of weights, at 81 x 704 x 1280)."""


def check_placement(offload: str, quantization: str | None) -> None:
    """Raise UserError for an unknown `offload` or `quantization`."""
    check_choice("`offload`", offload, get_args(Offload))
    check_choice("`quantization`", quantization, get_args(Quantize))


def check_packages(quantization: Quantize | None) -> None:
    """Raise UserError if the package for a quantization is not installed."""
    package = _PACKAGES.get(quantization)
    if package and importlib.util.find_spec(package) is None:
        raise UserError(
            f"`quantization` {quantization}: needs the package {package}: pip install 'rvedit[quantize]'"
        )


def transformer_stacks(pipeline: Any) -> dict[str, nn.Module]:
    """Return each component's transformer blocks, which hold nearly all of the weights."""
    stacks: dict[str, nn.Module] = {"transformer": pipeline.transformer.blocks}
    if vace_blocks := getattr(pipeline.transformer, "vace_blocks", None):
        stacks["transformer"] = nn.ModuleList([pipeline.transformer.blocks, vace_blocks])
    if getattr(pipeline, "mllm", None) is not None:
        stacks["mllm"] = pipeline.mllm.model.language_model.layers
    if getattr(pipeline, "text_encoder", None) is not None:
        stacks["text_encoder"] = pipeline.text_encoder.encoder.block
    return stacks


def is_quantized(module: nn.Module) -> bool:
    """Return whether some weights of a module are quantized."""
    return any(map(quantized_linear.is_quantized, module.parameters()))


def quantized_layers(stack: nn.Module, kind: Quantize) -> list[nn.Linear]:
    """Return the linear layers of a stack that `quantize` quantizes."""
    skipped = _FP8_SKIPPED if kind == "fp8" else ()
    return [
        layer
        for name, layer in stack.named_modules()
        if isinstance(layer, nn.Linear) and not any(re.search(pattern, name) for pattern in skipped)
    ]


def quantize(pipeline: Any, kind: Quantize, device: torch.device) -> None:
    """Store the linear layers of the large stacks in 8 or 4 bits; they compute in the model's own dtype."""
    check_packages(kind)
    for stack in transformer_stacks(pipeline).values():
        dtype = next(p.dtype for p in stack.parameters() if p.is_floating_point())
        if kind == "fp8":
            apply_layerwise_casting(stack, torch.float8_e4m3fn, dtype, skip_modules_pattern=_FP8_SKIPPED)
        elif kind == "int8":
            torchao = importlib.import_module("torchao.quantization")
            torchao.quantize_(stack, torchao.Int8WeightOnlyConfig(version=2))
        else:
            _quantize_nf4(stack, dtype, device)


def choose_offload(weight_bytes: float, free_bytes: float) -> Offload:
    """Return the offloading of `auto`: none if the weights leave enough memory to compute, else model."""
    return "none" if weight_bytes <= _MAX_WEIGHTS_FRACTION * free_bytes else "model"


def free_bytes(device: torch.device) -> float:
    """Return the free memory of a GPU; infinity for a CPU."""
    return float(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else float("inf")


def usable_bytes(device: torch.device) -> float:
    """Return the memory of a GPU that is free or reserved by this process; infinity for a CPU."""
    return free_bytes(device) + (torch.cuda.memory_reserved(device) if device.type == "cuda" else 0)


def _weight_bytes(pipeline: Any) -> int:
    modules = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    return sum(p.numel() * p.element_size() for module in modules for p in module.parameters())


def place(pipeline: Any, device: torch.device, offload: Offload) -> None:
    """Move a pipeline to a device, or enable offloading by component or by layer."""
    if offload == "auto":
        offload = choose_offload(_weight_bytes(pipeline), free_bytes(device))
    if offload == "none":
        pipeline.to(device)
    elif offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    else:
        use_stream = device.type == "cuda"  # prefetches the next layer
        pipeline.enable_group_offload(device, offload_type="leaf_level", use_stream=use_stream)


def _quantize_nf4(stack: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    bnb = importlib.import_module("bitsandbytes")
    for parent in list(stack.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear:
                quantized = bnb.nn.Linear4bit(
                    layer.in_features, layer.out_features, layer.bias is not None, dtype, quant_type="nf4"
                )
                weight = layer.weight.data
                quantized.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
                if layer.bias is not None:
                    quantized.bias = layer.bias
                setattr(parent, name, quantized.to(device))  # `to` does the quantization

"""All uses of other libraries' private names, but for those that our own subclasses inherit.

tests/test_compat.py fails when one changes. They are also the reason for the upper bounds of these libraries
in pyproject.toml.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

__all__ = ["TorchDispatchMode", "tree_iter"]  # torch: operator interception, nested arguments


def storage_key(tensor: Tensor) -> int:
    """Return a number that tensors of one storage share, unique among living storages (torch)."""
    return int(tensor.untyped_storage()._cdata)


def computes_bf16(device: torch.device) -> bool:
    """Return whether to compute in bf16 (torch): CPUs without instructions for it emulate it slowly."""
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def onload(module: Any) -> None:
    """Move a module that accelerate's hook keeps on the CPU to its execution device (accelerate).

    The hook acts only on `forward`; call this before any other method.
    """
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(module)


def execution_device(pipeline: Any) -> torch.device:
    """Return the device that a pipeline computes on, even if its modules are offloaded (diffusers)."""
    device: torch.device = pipeline._execution_device
    return device


def new_feature_cache(vae: Any) -> list[Any]:
    """Return an empty cache of a causal decoder's features, detached from the VAE (diffusers)."""
    vae.clear_cache()
    cache, vae._feat_map = vae._feat_map, None
    return list(cache)


def unpatchify(pixels: Tensor, patch_size: int) -> Tensor:
    """Return the output of Wan2.2's decoder with its patches rearranged into pixels (diffusers)."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify as diffusers_unpatchify

    unpatched: Tensor = diffusers_unpatchify(pixels, patch_size=patch_size)
    return unpatched


def causal_padding(convolution: Any) -> tuple[int, int, int]:
    """Return the padding of a `WanCausalConv3d`: frames before the first, rows, columns (diffusers)."""
    left, _, top, _, before, _ = convolution._padding
    return before, top, left


def clear_step_cache(transformer: Any) -> Any:
    """Clear the state of a transformer's step cache (diffusers); return the cache's config."""
    transformer._reset_stateful_cache()
    return transformer._cache_config


def nearest_interp(values: Tensor, length: int) -> Tensor:
    """Return MagCache's ratios, resampled to a number of steps (diffusers)."""
    from diffusers.hooks.mag_cache import nearest_interp as diffusers_nearest_interp

    resampled: Tensor = diffusers_nearest_interp(values, length)
    return resampled


def attention_backend(processor: Any) -> Any:
    """Return the attention backend of one attention processor (diffusers)."""
    return processor._attention_backend


def set_math_attention(processor: Any) -> None:
    """Set one attention processor to the math backend (diffusers).

    `set_attention_backend` would change all models of the process.
    """
    from diffusers.models.attention_dispatch import AttentionBackendName

    processor._attention_backend = AttentionBackendName._NATIVE_MATH


def enable_ulysses(transformer: Any, mesh: Any) -> None:
    """Do what a Wan transformer's `enable_parallelism` does, which needs an accelerator (diffusers)."""
    from diffusers.models._modeling_parallel import ContextParallelConfig, ParallelConfig

    degree = mesh["ulysses"].size()
    config = ParallelConfig(context_parallel_config=ContextParallelConfig(ulysses_degree=degree, mesh=mesh))
    device = next(transformer.parameters()).device
    config.setup(torch.distributed.get_rank(), torch.distributed.get_world_size(), device, mesh=mesh)
    transformer._parallel_config = config
    for block in transformer.blocks:
        block.attn1.processor._parallel_config = config


def sequence_mesh(transformer: Any) -> Any:
    """Return the mesh of processes that share a clip; None without context parallelism (diffusers)."""
    config = transformer._parallel_config
    context = config and config.context_parallel_config
    return context and context._flattened_mesh


def convert_wan_keys(state: dict[str, Any]) -> dict[str, Any]:
    """Return a Wan transformer's original weights under diffusers' names; empties `state` (diffusers)."""
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    converted: dict[str, Any] = convert_wan_transformer_to_diffusers(state)
    return converted


def convert_wan_vae_keys(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the original weights of Wan2.1's VAE under diffusers' names (diffusers)."""
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    converted: dict[str, Any] = convert_wan_vae_to_diffusers(dict(state))
    return converted


def read_gguf(path: Path) -> dict[str, Any]:
    """Return a GGUF file's tensors; quantized ones are diffusers' `GGUFParameter` (diffusers)."""
    from diffusers.models.model_loading_utils import load_gguf_checkpoint

    return dict(load_gguf_checkpoint(str(path)))


def gguf_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a GGUF file's tensors; no tensor is read (gguf)."""
    from gguf import GGUFReader

    return {tensor.name: tuple(int(n) for n in reversed(tensor.shape)) for tensor in GGUFReader(path).tensors}


def is_gguf_quantized(tensor: Tensor) -> bool:
    """Return whether a tensor is quantized, from a GGUF file (diffusers)."""
    return hasattr(tensor, "quant_type")


def dequantize_gguf(tensor: Tensor) -> Tensor:
    """Return a GGUF file's tensor in fp32 (diffusers)."""
    from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

    values: Tensor = dequantize_gguf_tensor(tensor)
    return values.float()


def with_gguf_layers(module: Any, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Replace a module's linear layers, in place, whose weights are from a GGUF file (diffusers)."""
    if any(map(is_gguf_quantized, tensors.values())):
        from diffusers.quantizers.gguf.utils import _replace_with_gguf_linear

        _replace_with_gguf_linear(module, dtype, tensors)


def smart_resize(height: int, width: int, grid: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Return the nearest (height, width) on a grid with an area in range (transformers, Qwen2-VL)."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as qwen_smart_resize

    rows, columns = qwen_smart_resize(height, width, grid, min_pixels, max_pixels)
    return int(rows), int(columns)

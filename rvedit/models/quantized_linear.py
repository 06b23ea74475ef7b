"""Linear layers whose weights stay quantized: fp8, or the types of GGUF files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rvedit.compat import dequantize_gguf, is_gguf_quantized, with_gguf_layers

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


class Fp8Linear(nn.Linear):
    """A linear layer with its weight in fp8 or bf16, which is converted to the input's dtype in each call.

    The weight is multiplied by `scale`, one number for all of it or one for each row.
    """

    scale: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool, scale: Tensor) -> None:
        super().__init__(in_features, out_features, bias, device="meta")
        scale = scale.reshape(-1, 1) if scale.numel() > 1 else scale.reshape(())
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, hidden_states: Float[Tensor, "... i"]) -> Float[Tensor, "... o"]:
        """See `torch.nn.Linear`."""
        dtype = hidden_states.dtype
        weight = (self.weight.float() * self.scale).to(dtype)  # rounded once
        return F.linear(hidden_states, weight, None if self.bias is None else self.bias.to(dtype))


def store_weights(module: nn.Module, dtype: torch.dtype, skipped: Sequence[str] = ()) -> None:
    """Store the weights of a module's linear layers in bf16 or fp8, in place; these are frozen then.

    In fp8 each row has a scale. Layers are skipped by the last part of their names. Unlike
    `apply_layerwise_casting`, this allows backward passes through the layers.
    """
    for name, layer in list(module.named_modules()):
        parent, _, child = name.rpartition(".")
        if type(layer) is not nn.Linear or child in skipped:
            continue
        weight, scale = layer.weight.detach(), torch.ones((), device=layer.weight.device)
        if dtype in FP8:
            scale = weight.float().abs().amax(dim=1).clamp_min(1e-12) / torch.finfo(dtype).max
            weight = weight.float() / scale[:, None]
        has_bias = layer.bias is not None
        stored = Fp8Linear(layer.in_features, layer.out_features, has_bias, scale)
        stored.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
        if has_bias:
            stored.bias = layer.bias
        setattr(module.get_submodule(parent), child, stored.requires_grad_(False))


def with_scale(weight: Tensor, scale: Tensor) -> Tensor:
    """Return an fp8 weight that remembers its scale."""
    weight.scale = scale.float()  # type: ignore[attr-defined]
    return weight


def _scale_of(weight: Tensor) -> Tensor:
    return getattr(weight, "scale", torch.ones(()))


def is_quantized(tensor: Tensor) -> bool:
    """Return whether a tensor is in fp8, or quantized from a GGUF file."""
    return tensor.dtype in FP8 or is_gguf_quantized(tensor)


def dequantize(tensor: Tensor) -> Tensor:
    """Return a quantized tensor in fp32."""
    if is_gguf_quantized(tensor):
        return dequantize_gguf(tensor)
    scale = _scale_of(tensor)
    return torch.as_tensor(tensor.float() * (scale.reshape(-1, 1) if scale.numel() > 1 else scale))


def shape_of(tensor: Tensor) -> torch.Size:
    """Return the shape of a tensor; those from GGUF files are bytes of another shape."""
    return torch.Size(getattr(tensor, "quant_shape", tensor.shape))


def use_quantized_layers(module: nn.Module, state: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Replace the linear layers of a module, in place, whose weights in `state` are quantized."""
    with_gguf_layers(module, state, dtype)
    for name, layer in list(module.named_modules()):
        weight = state.get(f"{name}.weight")
        if type(layer) is nn.Linear and weight is not None and weight.dtype in FP8:
            parent, _, child = name.rpartition(".")
            has_bias = layer.bias is not None
            quantized = Fp8Linear(layer.in_features, layer.out_features, has_bias, _scale_of(weight))
            setattr(module.get_submodule(parent), child, quantized.requires_grad_(False))


def load_quantized(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Let a module with such layers use the tensors of `state`, which has all of its keys."""
    of_gguf = {key: tensor for key, tensor in state.items() if is_gguf_quantized(tensor)}
    rest = {key: tensor for key, tensor in state.items() if key not in of_gguf}
    module.load_state_dict(rest, strict=not of_gguf, assign=True)
    for key, tensor in of_gguf.items():  # whose shape `load_state_dict` would refuse
        layer, _, name = key.rpartition(".")
        setattr(module.get_submodule(layer), name, tensor)

"""Memory of a training run, computed from shapes.

Weights, gradients, moments and EMA are fp32, as in the training loop. Activations assume fused (flash)
attention.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from rvedit.models.flops import Shape, context_lengths
from rvedit.pipelines.memory import BITS
from rvedit.training.distributed import SHARDED_LAYERS
from rvedit.training.optimizers import MATRIX_LAYERS
from rvedit.training.recipe import Recipe

FP32, BF16 = 4, 2
"""Bytes per value."""
MACHINE_GPUS = 8
"""GPUs of a machine, among which HSDP shards a copy by default."""
ACTIVATION_BYTES = {
    "transformer": ((68, 4, 12), (88, 8, 16)),
    "transformer, LoRA": ((50, 4, 12), (60, 8, 12)),
    "language": ((32, 8, 0), (34, 16, 0)),
    "vision": ((32, 8, 0), (52, 16, 0)),
    "text_encoder": ((40, 14, 0), (40, 28, 0)),
}
"""Bytes that a layer saves for the backward pass with fused attention, (bf16 autocast, fp32): per token
in multiples of the width d and of the feed-forward width f, and per context token in multiples of d.

A Wan block in bf16: 12 tensors of 4 d are fp32 (inputs and outputs of norms, queries and keys inside their
norm, the feed-forward output), 10 of 2 d and 2 of 2 f are bf16; keys and values of the context are 12 d. With
frozen weights, the outputs of norms and the inputs of gates are not saved."""


LORA_BACKWARD_BYTES = (10, 6.4), (-11, 8)
"""Temporary bytes of a block's backward pass with LoRA, (bf16, fp32): per token in multiples of d and of f.

Fitted to measurements with f of 2 d to 8 d. peft casts the inputs of its layers to fp32."""
STORAGE_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp8": 1.0, "nf4": BITS["nf4"] / 8}
"""Bytes per weight of `model.frozen_weights`."""
_STACKS = re.compile(r"(^|\.)(blocks|layers|block)\.\d+\.")
"""The large linear layers, which `store_frozen` stores so, are those of the stacks."""


@dataclass(frozen=True)
class Group:
    """Number of trained and frozen parameters of a part of the model."""

    name: str
    trained: int
    frozen: int


def count_parameters(name: str, module: nn.Module) -> Group:
    """Return the number of trained and frozen parameters of a module."""
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return Group(name, trained, sum(p.numel() for p in module.parameters()) - trained)


def matrices(module: nn.Module, trained: bool = False) -> int:
    """Return the number of weights in linear and convolutional layers, which autocast copies to bf16."""
    layers: list[Any] = [m for m in module.modules() if isinstance(m, MATRIX_LAYERS)]
    return sum(m.weight.numel() for m in layers if m.weight.requires_grad or not trained)


def activation_bytes(stack: str, tokens: int, d: int, f: int, bf16: bool, context: int = 0) -> float:
    """Return the bytes that a layer of a stack saves for the backward pass (`ACTIVATION_BYTES`)."""
    per_width, per_inner, per_context = ACTIVATION_BYTES[stack][0 if bf16 else 1]
    return float(tokens * (per_width * d + per_inner * f) + context * per_context * d)


def block_bytes(shape: Shape, context: int, bf16: bool, lora: bool = False) -> float:
    """Return the bytes that a transformer block with `context` context tokens saves."""
    stack = "transformer, LoRA" if lora else "transformer"
    return activation_bytes(stack, shape.rows, shape.width, shape.config["ffn_dim"], bf16, context)


def saved_bytes(shape: Shape, checkpointing: bool, aligned: bool, bf16: bool, lora: bool = False) -> float:
    """Return the bytes that the transformer saves for the backward pass.

    With checkpointing a block saves only its input. In addition to the blocks: input and output of the last
    norm in fp32, input of the output projection, source tokens and context; with alignment two traces and a
    gradient.
    """
    lengths = context_lengths(shape)
    token = (BF16 if bf16 else FP32) * shape.width
    extra = shape.rows * (2 * FP32 * shape.width + token) + max(lengths) * token
    extra += shape.sequence * (1 + 3 * aligned) * token  # whole on each process that shares the clip
    if checkpointing:
        return shape.blocks * shape.rows * token + extra
    return sum(block_bytes(shape, context, bf16, lora) for context in lengths) + extra


def temporary_bytes(shape: Shape, checkpointing: bool, bf16: bool, lora: bool = False) -> tuple[float, float]:
    """Return the temporary bytes of one block in the forward pass and in the backward pass.

    Forward: twice the hidden values of the feed-forward. Backward: three fp32 gradients of S d, or those of
    LoRA (`LORA_BACKWARD_BYTES`), and with checkpointing the recomputed activations of the block.
    """
    s, d, f = shape.rows, shape.width, shape.config["ffn_dim"]
    largest = max(block_bytes(shape, context, bf16, lora) for context in context_lengths(shape))
    gradients = 3.0 * FP32 * s * d
    if lora:
        per_width, per_inner = LORA_BACKWARD_BYTES[0 if bf16 else 1]
        gradients = s * (per_width * d + per_inner * f)
    return s * (2 * f + d) * (BF16 if bf16 else FP32), largest * checkpointing + gradients


def dequantized_bytes(block: nn.Module, blocks: int, checkpointing: bool, bf16: bool) -> float:
    """Return the bytes of quantized weights as they are multiplied.

    Each layer keeps them for its backward pass, and one is converted through fp32.
    """
    layers = [m.weight.numel() for m in block.modules() if isinstance(m, nn.Linear)]
    kept = sum(layers) * (1 if checkpointing else blocks)
    return float((BF16 if bf16 else FP32) * kept + FP32 * max(layers))


def frozen_bytes(recipe: Recipe, name: str, module: nn.Module) -> float:
    """Return the bytes of a part's frozen weights, as `model.frozen_weights` stores them."""
    storage = recipe.model.frozen_weights
    frozen = {name: p.numel() for name, p in module.named_parameters() if not p.requires_grad}
    if storage == "fp32":
        return float(FP32 * sum(frozen.values()))
    layers = {f"{n}.weight" for n, m in module.named_modules() if isinstance(m, nn.Linear)}
    stored = sum(count for n, count in frozen.items() if n in layers and _STACKS.search(n))
    rest = sum(frozen.values()) - stored
    is_bf16 = recipe.precision == "bf16" and name in ("mllm", "text_encoder")
    return STORAGE_BYTES[storage] * stored + (BF16 if is_bf16 else FP32) * rest


def tower_bytes(
    stack: str, config: Any, layers: int, tokens: int, bf16: bool, checkpointing: bool
) -> tuple[float, float]:
    """Return the bytes that a tower of the MLLM saves for the backward pass, and those recomputed at a time.

    With checkpointing a layer saves only its input, which is fp32.
    """
    layer = activation_bytes(stack, tokens, config.hidden_size, config.intermediate_size, bf16)
    if checkpointing:
        return float(layers * FP32 * tokens * config.hidden_size), layer
    return layers * layer, 0.0


def is_sharded(recipe: Recipe, gpus: int) -> bool:
    """Return whether a GPU holds only a part of the model."""
    return recipe.parallel != "ddp" and gpus > 1


def state_bytes(recipe: Recipe, module: nn.Module, replicated: int, gpus: int) -> dict[str, float]:
    """Return the bytes of weights, gradients, moments and EMA on a GPU, by part.

    FSDP2 keeps 1/N of `module` on each GPU and gathers one layer at a time, in the recipe's precision; the
    parameters outside the layers are one more unit, which stays gathered. With HSDP, N is a copy's GPUs. DDP
    copies gradients into buckets. `replicated` is a number of frozen parameters outside `module` that
    every GPU holds.
    """
    total = count_parameters("", module)
    muon = matrices(module, trained=True) if recipe.optimizer.name == "muon" else 0
    sharded = is_sharded(recipe, gpus)
    shards = gpus if sharded else 1
    if sharded and recipe.parallel == "hsdp":
        shards = recipe.shard_size or min(gpus, MACHINE_GPUS)
    moment = 1 + FP32 / 256 if recipe.optimizer.name == "adamw8bit" else FP32
    parts = {
        "trained weights": FP32 * total.trained / shards,
        "gradients": FP32 * total.trained / shards,
        "optimizer's moments": moment * (2 * total.trained - muon) / shards,  # Muon has one moment
        "moving average": FP32 * total.trained / shards if recipe.ema_decay else 0.0,
        "frozen weights": FP32 * (total.frozen / shards + replicated),
    }
    if sharded:
        layers = [m for m in module.modules() if type(m).__name__ in SHARDED_LAYERS]
        counts = [count_parameters("", layer) for layer in layers]
        rest = total.trained + total.frozen - sum(layer.trained + layer.frozen for layer in counts)
        # Gradients of bf16 weights are bf16, and are copied to fp32 before they are summed.
        size, gradient = (BF16, BF16 + FP32) if recipe.precision == "bf16" else (FP32, FP32)
        rest = size * rest + gradient * (total.trained - sum(layer.trained for layer in counts))
        # The current layer, the prefetched next one, and the gradients of one.
        layers_bytes = [2 * size * (c.frozen + c.trained) + gradient * c.trained for c in counts]
        parts["gathered by FSDP2"] = float(max(layers_bytes, default=0) + rest)
    elif gpus > 1:
        parts["buckets of DDP"] = float(FP32 * total.trained)
    return parts


def checkpoint_bytes(recipe: Recipe, groups: tuple[Group, ...], module: nn.Module) -> dict[str, float]:
    """Return the bytes of the checkpoints (weights, moments, EMA) and of the exported model."""
    trained = sum(group.trained for group in groups)
    merged = sum(group.trained for group in groups if group.name == "MLLM LoRA weights")
    is_lora = recipe.model.transformer_lora_rank > 0
    exported = trained if is_lora else trained + sum(group.frozen for group in groups) - merged
    muon = matrices(module, trained=True) if recipe.optimizer.name == "muon" else 0
    checkpoint = FP32 * (trained * (3 + (recipe.ema_decay > 0)) - muon)
    return {
        f"checkpoints ({recipe.keep_checkpoints} are kept)": float(recipe.keep_checkpoints * checkpoint),
        "trained model": float(FP32 * exported),
    }

"""FLOPs of the models, computed from their sizes.

Only matrix products count, with 2 m n k each: norms, modulation, rotary embeddings and the recomputation in
the backward pass of flash kernels do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Shape:
    """Sizes of a transformer and of the clip that it edits."""

    config: dict[str, Any]
    """Config of `RoutedWanTransformer3DModel`."""
    grid: tuple[int, int, int]
    """Latent frames, height and width."""
    edit_tokens: int
    """K."""
    text_tokens: int
    shared_by: int = 1
    """Processes that compute the clip together (context parallelism)."""

    @property
    def latents(self) -> tuple[int, int, int, int, int]:
        """Return the shape (b, c, f, h, w) of one clip's latents."""
        return (1, self.config["in_channels"], *self.grid)

    @property
    def width(self) -> int:
        """Return d, the transformer's width."""
        return int(self.config["num_attention_heads"] * self.config["attention_head_dim"])

    @property
    def blocks(self) -> int:
        """Return L, the number of blocks."""
        return int(self.config["num_layers"])

    @property
    def sequence(self) -> int:
        """Return S, the number of video tokens."""
        size = 1
        for length, patch in zip(self.grid, self.config["patch_size"], strict=True):
            size *= length // patch
        return size

    @property
    def rows(self) -> int:
        """Return the number of video tokens that each process computes."""
        return self.sequence // self.shared_by


def context_lengths(shape: Shape, context: str = "routed") -> list[int]:
    """Return the number of context tokens of each block (Eq. 3); constant for `full` and `text only`."""
    if context == "text only":
        return [shape.text_tokens] * shape.blocks
    all_tokens = shape.edit_tokens + shape.sequence + shape.text_tokens
    shallow = shape.config["routing_depth"] if context == "routed" else 0
    return [shape.edit_tokens] * shallow + [all_tokens] * (shape.blocks - shallow)


def forward_flops(
    shape: Shape, lengths: Sequence[int], reuse: bool = False, stop_at: int | None = None
) -> float:
    """Return the FLOPs of a forward pass of one clip, over all processes that share it.

    A block: self-attention 4 S^2 d and its projections 8 S d^2; cross-attention 4 S C d, its queries and
    output 4 S d^2, its keys and values 4 C d^2 (0 with `reuse`) on each process; feed-forward 4 S d f. A pass
    with `stop_at` ends before the feed-forward of that block.
    """
    s, d, f = shape.sequence, shape.width, shape.config["ffn_dim"]
    total = 0.0
    for depth, c in enumerate(lengths, start=1):
        total += 4 * s * s * d + 8 * s * d * d + 4 * s * c * d + 4 * s * d * d
        total += 4 * c * d * d * (not reuse) * shape.shared_by
        if depth == stop_at:
            break
        total += 4 * s * d * f
    return total


def step_flops(
    shape: Shape,
    depths: Sequence[int] = (),
    checkpointing: bool = True,
    context: str = "routed",
    frozen: bool = False,
) -> dict[str, float]:
    """Return the transformer's FLOPs of a training step for one clip, by part.

    A backward pass counts as two forward passes. With `frozen` weights and context, which LoRA leaves so,
    only attention does; other layers have no gradients of weights, and the context's keys and values none at
    all. LoRA's own products are not counted. The reference branch stops at the sampled block: its figure is
    the mean over `depths`; without depths there is no alignment.
    """
    lengths = context_lengths(shape, context)
    forward = forward_flops(shape, lengths)
    backward = 2 * forward
    if frozen:
        s, d = shape.sequence, shape.width
        backward = forward_flops(shape, lengths, reuse=True) + sum(4 * s * (s + c) * d for c in lengths)
    reference = [forward_flops(shape, lengths, stop_at=depth) for depth in depths]
    return {
        "transformer, forward": forward,
        "transformer, backward": backward,
        "transformer, recomputed": forward * checkpointing,
        "reference branch, expected": sum(reference) / len(reference) if depths else 0.0,
        # Eq. 5 and its gradient: the similarities twice, and their product with a*.
        "alignment loss": 6.0 * shape.sequence**2 * shape.width * shape.shared_by if depths else 0.0,
    }


def stack_flops(module: nn.Module, tokens: int, attended: float | int, width: int, layers: int) -> float:
    """Return the FLOPs of a transformer stack's forward pass: 2 n P for matrices, 4 n m d for attention.

    P is the number of weights in linear and convolutional layers; each of n tokens attends to m, with heads
    of total width d.
    """
    weights = sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear | nn.Conv3d))
    return float(2 * tokens * weights + layers * 4 * tokens * attended * width)


def vision_flops(encoder: Any, patches: tuple[int, int, int]) -> float:
    """Return the FLOPs of Qwen2.5-VL's vision encoder over patches (t, h, w)."""
    config, (pairs, rows, columns) = encoder.config, patches
    window = min((config.window_size // config.patch_size) ** 2, rows * columns)
    full = len(config.fullatt_block_indexes)
    attended = (full * rows * columns + (config.depth - full) * window) / config.depth
    count = pairs * rows * columns
    merged = stack_flops(encoder.merger, count // config.spatial_merge_size**2, 0, 0, 0)
    blocks = stack_flops(encoder.blocks, count, attended, config.hidden_size, config.depth)
    return blocks + merged + stack_flops(encoder.patch_embed, count, 0, 0, 0)

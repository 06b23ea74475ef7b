"""What passes through the models cost, from sizes alone; an operation is an addition or a product.

Costs count matrix products and convolutions, 2 m n k each: no norms, no modulation, no rotary embedding. What
flash kernels compute a second time in their backward pass is not counted either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from torch import Tensor, nn

from rvedit.models.causal_convolution import SingleFrameConv3d


@dataclass(frozen=True)
class Shape:
    """A transformer and the clip that it edits."""

    config: dict[str, Any]
    """Of `RoutedWanTransformer3DModel`."""
    grid: tuple[int, int, int]
    """Latent frames, rows and columns."""
    edit_tokens: int
    """K."""
    text_tokens: int

    @property
    def latents(self) -> tuple[int, int, int, int, int]:
        """b c f h w of one clip."""
        return (1, self.config["in_channels"], *self.grid)

    @property
    def width(self) -> int:
        """The transformer's d."""
        return int(self.config["num_attention_heads"] * self.config["attention_head_dim"])

    @property
    def blocks(self) -> int:
        """The transformer's L."""
        return int(self.config["num_layers"])

    @property
    def sequence(self) -> int:
        """S, the video's tokens."""
        size = 1
        for length, patch in zip(self.grid, self.config["patch_size"], strict=True):
            size *= length // patch
        return size


# The transformer.


def context_lengths(shape: Shape, context: str = "routed") -> list[int]:
    """Tokens that each block reads (Eq. 3): `routed`, or `full` or `text only` everywhere."""
    if context == "text only":
        return [shape.text_tokens] * shape.blocks
    everything = shape.edit_tokens + shape.sequence + shape.text_tokens
    shallow = shape.config["routing_depth"] if context == "routed" else 0
    return [shape.edit_tokens] * shallow + [everything] * (shape.blocks - shallow)


def forward_flops(
    shape: Shape, lengths: Sequence[int], reuse: bool = False, stop_at: int | None = None
) -> float:
    """FLOPs of a forward pass of one clip.

    A block: self-attention 4 S^2 d and its projections 8 S d^2; cross-attention 4 S C d, its queries and
    output 4 S d^2, its keys and values 4 C d^2 (none with `reuse`); feed-forward 4 S d f. A pass that stops
    at block `stop_at` ends before that block's feed-forward.
    """
    s, d, f = shape.sequence, shape.width, shape.config["ffn_dim"]
    total = 0.0
    for depth, c in enumerate(lengths, start=1):
        total += 4 * s * s * d + 8 * s * d * d + 4 * s * c * d + 4 * s * d * d + 4 * c * d * d * (not reuse)
        if depth == stop_at:
            break
        total += 4 * s * d * f
    return total


def alignment_flops(sequence: int, width: int) -> float:
    """Eq. 5 with its gradient: the similarities twice, once more times a*."""
    return 6.0 * sequence**2 * width


@dataclass(frozen=True)
class StepFlops:
    """The transformer's part of a training step, in FLOPs of one clip."""

    forward: float
    backward: float
    """Two forward passes: the gradients of the inputs and of the weights."""
    recomputation: float
    """One more forward pass under gradient checkpointing."""
    reference: float
    """The reference branch, which stops at the sampled block."""
    alignment: float
    """Eq. 5."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.forward + self.backward + self.recomputation + self.reference + self.alignment


def step_flops(
    shape: Shape, depths: Sequence[int] = (), checkpointing: bool = True, context: str = "routed"
) -> StepFlops:
    """A training step, aligned at one of `depths` (their mean), or not aligned."""
    lengths = context_lengths(shape, context)
    forward = forward_flops(shape, lengths)
    reference = [forward_flops(shape, lengths, stop_at=depth) for depth in depths]
    return StepFlops(
        forward=forward,
        backward=2 * forward,
        recomputation=forward * checkpointing,
        reference=sum(reference) / len(reference) if depths else 0.0,
        alignment=alignment_flops(shape.sequence, shape.width) if depths else 0.0,
    )


def training_flops(
    shape: Shape, depths: Sequence[int] = (), checkpointing: bool = True, context: str = "routed"
) -> float:
    """`step_flops` as one number."""
    return step_flops(shape, depths, checkpointing, context).total


# What conditions it. `config` is transformers' own.


def language_flops(config: Any, tokens: int) -> float:
    """A forward pass of Qwen2.5's decoder; attention as if it were not causal, as kernels with a mask do."""
    width, inner = config.hidden_size, config.intermediate_size
    key_width = width // config.num_attention_heads * config.num_key_value_heads
    matrices = 2 * width * width + 2 * width * key_width + 3 * width * inner
    return float(config.num_hidden_layers * (2 * matrices * tokens + 4 * tokens**2 * width))


def vision_flops(config: Any, grid: tuple[int, int, int]) -> float:
    """A forward pass of Qwen2.5-VL's vision encoder over patches (t, h, w); most blocks attend in windows."""
    frames, rows, columns = grid
    patches, width, merge = frames * rows * columns, config.hidden_size, config.spatial_merge_size
    matrices = 4 * width * width + 3 * width * config.intermediate_size
    window = min((config.window_size // config.patch_size) ** 2, rows * columns)
    everywhere = len(config.fullatt_block_indexes)
    seen = everywhere * rows * columns + (config.depth - everywhere) * window
    patch = config.in_channels * config.temporal_patch_size * config.patch_size**2 * width
    merged = width * merge**2
    merger = merged * (merged + config.out_hidden_size) / merge**2
    return float(2 * patches * (config.depth * matrices + patch + merger) + 4 * patches * seen * width)


def text_encoder_flops(config: Any, tokens: int) -> float:
    """A forward pass of umT5's encoder."""
    inner = config.num_heads * config.d_kv
    matrices = 4 * config.d_model * inner + 3 * config.d_model * config.d_ff
    return float(config.num_layers * (2 * matrices * tokens + 4 * tokens**2 * inner))


@contextmanager
def counting_convolutions(module: nn.Module) -> Iterator[list[float]]:
    """Within it each call of a convolution adds its FLOPs to the list; works on the meta device."""
    calls: list[float] = []

    def count(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        weight: Any = layer.weight
        taps = weight.numel()
        alone = len(inputs) == 1 or inputs[1] is None
        if isinstance(layer, SingleFrameConv3d) and alone and inputs[0].shape[2] == 1:
            taps //= weight.shape[2]  # of a single frame, one tap in time
        calls.append(2.0 * taps * output.numel() / output.shape[1])

    kinds = (nn.Conv2d, nn.Conv3d, WanCausalConv3d)
    hooks = [m.register_forward_hook(count) for m in module.modules() if isinstance(m, kinds)]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()

"""Model sizes and random inputs for the benchmarks; their FLOPs are in `rvedit.models.flops`."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BatchEncoding

from rvedit.models.flops import (  # noqa: F401 (imported by other benchmarks)
    Shape,
    context_lengths,
    forward_flops,
    step_flops,
)
from rvedit.models.presets import WAN22_5B_TRANSFORMER
from rvedit.models.routing import TokenGroups
from rvedit.models.transformer import RoutedWanTransformer3DModel
from rvedit.training.step import BranchInputs, TripletBatch, sample_trace_block

CONTEXTS = ("text only", "full", "routed")
SEED = 0

FULL = Shape(WAN22_5B_TRANSFORMER, grid=(21, 44, 80), edit_tokens=512, text_tokens=512)
"""81 x 704 x 1280 in the 5B: S = 18,480."""


def alignment_flops(sequence: int, width: int) -> float:
    """Return the FLOPs of Eq. 5 and its gradient."""
    return 6.0 * sequence**2 * width


def training_flops(shape: Shape, depths: Any = (), checkpointing: bool = True) -> float:
    """Return the FLOPs of a training step of the transformer for one clip."""
    return sum(step_flops(shape, depths, checkpointing).values())


def scaled_down(width: int, blocks: int, grid: tuple[int, int, int], tokens: int) -> Shape:
    """Return a model with the 5B's proportions; `tokens` of X_e and of X_l, head dimension 64."""
    config = {
        **WAN22_5B_TRANSFORMER,
        "num_attention_heads": width // 64,
        "attention_head_dim": 64,
        "text_dim": width,
        "ffn_dim": 14336 * width // 3072,
        "num_layers": blocks,
        "routing_depth": blocks // 2,
    }
    return Shape(config, grid, edit_tokens=tokens, text_tokens=tokens)


SMALL = scaled_down(256, 8, (4, 24, 32), 32)
"""Width 256, 8 blocks, S = 768."""


def sample_of_depths(blocks: int, number: int) -> list[int]:
    """Return the centers of equal parts of 1 ... L, whose mean cost is that of a uniformly drawn depth."""
    return [round((part + 0.5) * blocks / number + 0.5) for part in range(number)]


def step_with_depth(depth: int, blocks: int) -> int:
    """Return the first training step that samples this depth."""
    return next(step for step in count() if sample_trace_block(SEED, step, blocks) == depth)


def build_transformer(
    shape: Shape, device: torch.device, dtype: torch.dtype = torch.float32
) -> RoutedWanTransformer3DModel:
    """Return a transformer with random weights on the device; the parts that Wan keeps in fp32 are fp32."""
    torch.manual_seed(SEED)
    with torch.device(device):
        transformer = RoutedWanTransformer3DModel(**shape.config)
    fp32_modules = set(transformer._keep_in_fp32_modules)
    for name, parameter in transformer.named_parameters():
        if fp32_modules.isdisjoint(name.split(".")):
            parameter.data = parameter.data.to(dtype)
    return transformer


def build_token_groups(transformer: RoutedWanTransformer3DModel, shape: Shape, context: str) -> TokenGroups:
    """Return random tokens of a context, and set the routing depth for it."""
    like = transformer.patch_embedding.weight

    def random(*size: int) -> Tensor:
        return torch.randn(size, device=like.device, dtype=like.dtype)

    transformer.register_to_config(routing_depth=shape.config["routing_depth"] if context == "routed" else 0)
    text = random(1, shape.text_tokens, shape.config["text_dim"])
    if context == "text only":
        return transformer.embed_tokens(text_states=text)
    return transformer.embed_tokens(random(1, shape.edit_tokens, shape.width), random(*shape.latents), text)


class StubPipeline(nn.Module):
    """A pipeline for `training_losses` around a transformer, with fixed latents, X_e and text states."""

    def __init__(self, transformer: RoutedWanTransformer3DModel, shape: Shape):
        super().__init__()
        like = {"device": transformer.device, "dtype": transformer.patch_embedding.weight.dtype}
        tokens = shape.text_tokens
        self.transformer = transformer
        self.config = SimpleNamespace(max_text_length=tokens)
        ids = torch.ones(1, tokens, dtype=torch.long, device=transformer.device)
        self.tokenizer = lambda *args, **kwargs: BatchEncoding({"input_ids": ids, "attention_mask": ids})
        self.text_encoder = _Table(torch.randn(1, tokens, shape.config["text_dim"], **like))
        self.edit_tokens = nn.Parameter(torch.randn(1, shape.edit_tokens, shape.width, **like))

    def edit_token_encoder(self, frames: Any, texts: Any, reference_images: Any = ()) -> Tensor:
        """Return X_e, which needs a gradient like the connector's output."""
        return self.edit_tokens


class _Table(nn.Module):
    def __init__(self, states: Tensor):
        super().__init__()
        self.states = nn.Parameter(states, requires_grad=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return SimpleNamespace(last_hidden_state=self.states)


def random_batch(shape: Shape, device: torch.device) -> TripletBatch:
    """Return a triplet of random latents."""
    latents = (torch.randn(shape.latents, device=device) for _ in range(2))
    source, target = (BranchInputs(None, [], [], clip) for clip in latents)
    return TripletBatch(source, target)

"""Sizes to measure at, and inputs of random numbers. What they should cost is in `rvedit.models.flops`."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BatchEncoding

from rvedit.models.flops import (  # noqa: F401 (for the benchmarks beside)
    Shape,
    alignment_flops,
    context_lengths,
    forward_flops,
    training_flops,
)
from rvedit.models.presets import WAN22_5B_TRANSFORMER
from rvedit.models.routing import TokenGroups
from rvedit.models.transformer import RoutedWanTransformer3DModel
from rvedit.training.step import BranchInputs, TripletBatch, sample_trace_block

CONTEXTS = ("text only", "full", "routed")
SEED = 0

FULL = Shape(WAN22_5B_TRANSFORMER, grid=(21, 44, 80), edit_tokens=512, text_tokens=512)
"""81 x 704 x 1280 in the 5B: S = 18,480."""


def scaled_down(width: int, blocks: int, grid: tuple[int, int, int], tokens: int) -> Shape:
    """The 5B's proportions at another size; `tokens` of X_e and of X_l, heads of 64."""
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
    """Depths in the middle of equal parts of 1 ... L: their mean cost is that of a uniform depth."""
    return [round((part + 0.5) * blocks / number + 0.5) for part in range(number)]


def step_with_depth(depth: int, blocks: int) -> int:
    """The first training step that draws this depth."""
    return next(step for step in count() if sample_trace_block(SEED, step, blocks) == depth)


# What is measured.


def build_transformer(
    shape: Shape, device: torch.device, dtype: torch.dtype = torch.float32
) -> RoutedWanTransformer3DModel:
    """A transformer of random weights, made on the device; what Wan keeps in fp32 stays so."""
    torch.manual_seed(SEED)
    with torch.device(device):
        transformer = RoutedWanTransformer3DModel(**shape.config)
    kept = set(transformer._keep_in_fp32_modules)
    for name, parameter in transformer.named_parameters():
        if kept.isdisjoint(name.split(".")):
            parameter.data = parameter.data.to(dtype)
    return transformer


def build_token_groups(transformer: RoutedWanTransformer3DModel, shape: Shape, context: str) -> TokenGroups:
    """Random tokens of a context, and the routing depth that goes with it."""
    like = transformer.patch_embedding.weight

    def random(*size: int) -> Tensor:
        return torch.randn(size, device=like.device, dtype=like.dtype)

    transformer.register_to_config(routing_depth=shape.config["routing_depth"] if context == "routed" else 0)
    text = random(1, shape.text_tokens, shape.config["text_dim"])
    if context == "text only":
        return transformer.embed_tokens(text_states=text)
    return transformer.embed_tokens(random(1, shape.edit_tokens, shape.width), random(*shape.latents), text)


class StandIns(nn.Module):
    """What `training_losses` needs around a transformer, at no cost: ready latents, X_e and text states."""

    def __init__(self, transformer: RoutedWanTransformer3DModel, shape: Shape):
        super().__init__()
        like = {"device": transformer.device, "dtype": transformer.patch_embedding.weight.dtype}
        channels, tokens = shape.config["in_channels"], shape.text_tokens
        self.transformer = transformer
        self.config = SimpleNamespace(max_text_length=tokens)
        self.vae = SimpleNamespace(
            dtype=torch.float32,
            config=SimpleNamespace(latents_mean=[0.0] * channels, latents_std=[1.0] * channels),
            encode=lambda latents: SimpleNamespace(latent_dist=SimpleNamespace(mean=latents)),
        )
        ids = torch.ones(1, tokens, dtype=torch.long, device=transformer.device)
        self.tokenizer = lambda *args, **kwargs: BatchEncoding({"input_ids": ids, "attention_mask": ids})
        self.text_encoder = _Table(torch.randn(1, tokens, shape.config["text_dim"], **like))
        self.edit_tokens = nn.Parameter(torch.randn(1, shape.edit_tokens, shape.width, **like))

    def edit_token_encoder(self, frames: Any, texts: Any) -> Tensor:
        """X_e; it takes a gradient, as the connector's output does."""
        return self.edit_tokens


class _Table(nn.Module):
    def __init__(self, states: Tensor):
        super().__init__()
        self.states = nn.Parameter(states, requires_grad=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return SimpleNamespace(last_hidden_state=self.states)


def random_batch(shape: Shape, device: torch.device) -> TripletBatch:
    """A triplet whose clips are latents already (see `StandIns`)."""
    source, target = (BranchInputs(torch.randn(shape.latents, device=device), [], []) for _ in range(2))
    return TripletBatch(source, target)

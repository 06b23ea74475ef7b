"""Granularity-routed token conditioning (section 4.2): which tokens each block attends to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class TokenGroups:
    """The token groups of section 4.2 in the transformer's width, built once per clip.

    Groups that are None are left out; with `text_tokens` alone and a routing depth of 0 the transformer is
    exactly Wan.
    """

    edit_tokens: Float[Tensor, "b k d"] | None = None
    """X_e, from the multimodal LLM."""
    visual_tokens: Float[Tensor, "b n d"] | None = None
    """X_v, from the source's latents."""
    text_tokens: Float[Tensor, "b m d"] | None = None
    """X_l, the instruction encoded by the backbone's own text encoder."""
    source_tokens: Float[Tensor, "b s d"] | None = None
    """The embedded source latents, which are scaled by sigma_t and added to the noisy tokens."""
    reference_tokens: Float[Tensor, "b r d"] | None = None
    """The embedded latents of a reference image: one more frame of the noisy tokens."""


def route(groups: TokenGroups, num_layers: int, routing_depth: int) -> Sequence[Float[Tensor, "b c d"]]:
    """Return the cross-attention context of every block, C^(1) ... C^(L) (Eq. 3).

    Blocks 1 ... L_s get X_e alone, blocks L_s + 1 ... L get [X_e; X_v; X_l]. `routing_depth` is L_s: with 0
    every block gets all groups, with `num_layers` every block gets X_e alone.
    """
    if not 0 <= routing_depth <= num_layers:
        raise ValueError(
            f"routing_depth is {routing_depth}: it must be in 0 ... {num_layers}, the number of blocks"
        )
    candidates = (groups.edit_tokens, groups.visual_tokens, groups.text_tokens)
    present = [tokens for tokens in candidates if tokens is not None]
    if not present or (routing_depth and groups.edit_tokens is None):
        raise ValueError("edit_tokens is None: blocks up to routing_depth attend to these tokens only")
    all_tokens = torch.cat(present, dim=1)
    shallow = groups.edit_tokens if groups.edit_tokens is not None else all_tokens
    return [shallow if block <= routing_depth else all_tokens for block in range(1, num_layers + 1)]

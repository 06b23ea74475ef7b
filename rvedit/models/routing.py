"""Granularity-routed token conditioning (section 4.2): which tokens each block may read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class TokenGroups:
    """The token groups of section 4.2 in the transformer's width, built once per clip.

    A group that is absent is simply not read; with `text_tokens` alone and a routing depth of 0 the
    transformer is plain Wan.
    """

    edit_tokens: Float[Tensor, "b k d"] | None = None
    """X_e, distilled by the multimodal LLM."""
    visual_tokens: Float[Tensor, "b n d"] | None = None
    """X_v, the source's latents as tokens."""
    text_tokens: Float[Tensor, "b m d"] | None = None
    """X_l, the instruction as the backbone's own text encoder reads it."""
    source_tokens: Float[Tensor, "b s d"] | None = None
    """The source's latents as they are added to the noisy tokens, scaled by sigma_t."""


def route(conditioning: TokenGroups, num_layers: int, routing_depth: int) -> Sequence[Float[Tensor, "b c d"]]:
    """The cross-attention context of every block, C^(1) ... C^(L) (Eq. 3).

    Blocks 1 ... L_s read X_e alone, blocks L_s + 1 ... L read [X_e; X_v; X_l]. `routing_depth` is L_s: 0
    shows everything everywhere, `num_layers` shows X_e alone.
    """
    if not 0 <= routing_depth <= num_layers:
        raise ValueError(
            f"routing_depth is {routing_depth}: it must lie in 0 ... {num_layers}, the number of blocks"
        )
    groups = (conditioning.edit_tokens, conditioning.visual_tokens, conditioning.text_tokens)
    present = [group for group in groups if group is not None]
    if not present or (routing_depth and conditioning.edit_tokens is None):
        raise ValueError("edit_tokens is None: blocks up to routing_depth have nothing else to read")
    everything = torch.cat(present, dim=1)
    shallow = conditioning.edit_tokens if conditioning.edit_tokens is not None else everything
    return [shallow if block <= routing_depth else everything for block in range(1, num_layers + 1)]

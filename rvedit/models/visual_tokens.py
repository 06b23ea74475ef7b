"""T_v: tokens of the source's latents (X_v of section 4.2)."""

from __future__ import annotations

import torch
from diffusers.models.embeddings import get_3d_sincos_pos_embed
from einops import rearrange
from jaxtyping import Float
from torch import Tensor


def flatten_tokens(features: Float[Tensor, "b d f h w"]) -> Float[Tensor, "b s d"]:
    """Return a feature volume as a sequence of tokens, frame by frame, row by row."""
    return rearrange(features, "b d f h w -> b (f h w) d").contiguous()


def position_embedding(features: Float[Tensor, "b d f h w"]) -> Float[Tensor, "1 s d"]:
    """Return the sine-cosine embedding of each token's frame, row and column.

    It is added to X_v because cross-attention has no rotary embedding.
    """
    _, width, frames, rows, columns = features.shape
    embedding = get_3d_sincos_pos_embed(width, (columns, rows), frames, device=features.device)
    return rearrange(embedding.to(torch.float32), "f s d -> 1 (f s) d")

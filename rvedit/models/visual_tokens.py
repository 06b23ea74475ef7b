"""T_v: the source's latents as tokens (X_v of section 4.2)."""

from __future__ import annotations

import torch
from diffusers.models.embeddings import get_3d_sincos_pos_embed
from einops import rearrange
from jaxtyping import Float
from torch import Tensor


def flatten_tokens(features: Float[Tensor, "b d f h w"]) -> Float[Tensor, "b s d"]:
    """A feature volume as a sequence of tokens, frame by frame, row by row."""
    return rearrange(features, "b d f h w -> b (f h w) d").contiguous()


def position_embedding(features: Float[Tensor, "b d f h w"]) -> Float[Tensor, "1 s d"]:
    """Sine-cosine embedding of each token's frame, row and column.

    Cross-attention has no rotary embedding, so X_v must carry its positions itself.
    """
    _, width, frames, rows, columns = features.shape
    embedding: Tensor = get_3d_sincos_pos_embed(width, (columns, rows), frames, device=features.device)
    return rearrange(embedding.to(torch.float32), "f s d -> 1 (f s) d")

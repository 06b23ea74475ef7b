"""Cross-attention statistics: mass on token groups, spatial entropy and maps (Fig. 4a).

P(n | s) is the attention of position s on token n in one head. Its S x N matrix is never stored: rows are
computed in chunks, which use a few times `TILE` elements of memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

TILE = 2**22
"""Elements of a chunk of P over all heads."""


@dataclass(frozen=True)
class AttentionStatistics:
    """Statistics of one block's cross-attention, mean over heads, positions and the batch."""

    mass: Float[Tensor, " g"]
    """Fraction of the attention on each group of tokens; sums to 1."""
    entropy: float
    """Entropy of the spatial attention maps divided by ln S: 1 is uniform, 0 a single position."""


def attention_rows(
    query: Float[Tensor, "b s h e"], key: Float[Tensor, "b n h e"], tile: int = TILE
) -> Iterator[tuple[Float[Tensor, "b h r n"], Float[Tensor, "b h r n"]]]:
    """Yield P(n | s) and its logarithm in chunks of rows; in fp32, or in fp64 if the queries are in fp64."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    batch, positions, heads, width = query.shape
    rows = max(1, tile // (batch * heads * key.shape[1]))
    keys = key.to(dtype)
    for start in range(0, positions, rows):
        with torch.autocast(query.device.type, enabled=False):
            logits = einsum(query[:, start : start + rows].to(dtype), keys, "b r h e, b n h e -> b h r n")
            logs = torch.log_softmax(logits / math.sqrt(width), dim=-1)
        yield logs.exp(), logs


def attention_statistics(
    query: Float[Tensor, "b s h e"], key: Float[Tensor, "b n h e"], groups: Sequence[int], tile: int = TILE
) -> AttentionStatistics:
    """Return the mass by group and the spatial entropy; `groups` has the size of each group in order.

    The spatial attention map of token n is q_n(s) = P(n | s) / Z_n with Z_n = sum_s P(n | s): the positions
    that attend to the token. Its entropy is ln Z_n - sum_s P ln P / Z_n. Tokens are weighted by Z_n, so that
    tokens without attention do not count; the weighted mean equals ln S less the mutual information of
    position and token.

    Raises ValueError if the groups' sizes do not add up to the number of keys.
    """
    if sum(groups) != key.shape[1]:
        raise ValueError(f"groups of {list(groups)} tokens: the context has {key.shape[1]}")
    batch, positions, heads, _ = query.shape
    totals = torch.zeros((batch, heads, key.shape[1]), dtype=torch.float64, device=query.device)
    negative_entropy = 0.0
    for attention, logs in attention_rows(query, key, tile):
        totals += attention.sum(dim=2, dtype=torch.float64)
        # log_softmax is finite even where P has underflowed to 0, so the product is 0 and not NaN.
        negative_entropy += float((attention * logs).sum(dtype=torch.float64))
    total = float(totals.sum())
    # sum_n Z_n H_n = sum_n Z_n ln Z_n - sum_n,s P ln P.
    weighted = float(torch.xlogy(totals, totals).sum()) - negative_entropy
    mass = torch.stack([part.sum() for part in totals.split(list(groups), dim=-1)]) / total
    return AttentionStatistics(mass, weighted / total / (math.log(positions) if positions > 1 else 1.0))

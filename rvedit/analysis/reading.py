"""What cross-attention reads: mass on token groups, spatial entropy, maps (Fig. 4a); no S x N matrix is kept.

P(n | s) is the attention of position s on token n, in one head. Rows are computed in chunks, each a few times
`TILE` numbers; `read` sums them up and keeps what is of size N.
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
"""Numbers of a chunk of P, over all heads."""


@dataclass(frozen=True)
class Reading:
    """How a block reads its context, mean over heads, positions and the batch."""

    mass: Float[Tensor, " g"]
    """The share of attention that each group of tokens gets; sums to 1."""
    entropy: float
    """Of the spatial attention maps, as a share of ln S: 1 is everywhere alike, 0 a single position."""


def attention_rows(
    query: Float[Tensor, "b s h e"], key: Float[Tensor, "b n h e"], tile: int = TILE
) -> Iterator[tuple[slice, Float[Tensor, "b h r n"], Float[Tensor, "b h r n"]]]:
    """P(n | s) and its logarithm, some rows at a time; in fp32, or in fp64 if the queries are."""
    precision = torch.promote_types(query.dtype, torch.float32)
    batch, positions, heads, width = query.shape
    rows = max(1, tile // (batch * heads * key.shape[1]))
    keys = key.to(precision)
    for start in range(0, positions, rows):
        span = slice(start, start + rows)
        with torch.autocast(query.device.type, enabled=False):
            logits = einsum(query[:, span].to(precision), keys, "b r h e, b n h e -> b h r n")
            logs = torch.log_softmax(logits / math.sqrt(width), dim=-1)
        yield span, logs.exp(), logs


def attention_statistics(
    query: Float[Tensor, "b s h e"],
    key: Float[Tensor, "b n h e"],
    groups: Sequence[int],
    tile: int = TILE,
) -> Reading:
    """Mass by group and spatial entropy; `groups` are the groups' numbers of tokens, in the context's order.

    The spatial attention map of token n is q_n(s) = P(n | s) / Z_n with Z_n = sum_s P(n | s): where in the
    clip the token is read. Its entropy is ln Z_n - sum_s P ln P / Z_n. Tokens are weighted by Z_n, as one
    that nobody reads says nothing; so the mean is ln S less the mutual information of position and token.

    Raises ValueError where the groups are not the context.
    """
    if sum(groups) != key.shape[1]:
        raise ValueError(f"groups of {list(groups)} tokens: the context has {key.shape[1]}")
    batch, positions, heads, _ = query.shape
    received = torch.zeros((batch, heads, key.shape[1]), dtype=torch.float64, device=query.device)
    negative_entropy = 0.0
    for _, attention, logs in attention_rows(query, key, tile):
        received += attention.sum(dim=2, dtype=torch.float64)
        # The logarithm of what has underflowed to 0 is finite here: log_softmax does not go by way of P.
        negative_entropy += float((attention * logs).sum(dtype=torch.float64))
    total = float(received.sum())
    # sum_n Z_n H_n, in which the sums over s of P ln P of all tokens are the rows' own.
    weighted = float(torch.xlogy(received, received).sum()) - negative_entropy
    mass = torch.stack([part.sum() for part in received.split(list(groups), dim=-1)]) / total
    return Reading(mass, weighted / total / (math.log(positions) if positions > 1 else 1.0))


def maps(
    query: Float[Tensor, "b s h e"], key: Float[Tensor, "b n h e"], tile: int = TILE
) -> Iterator[tuple[slice, Float[Tensor, "b r n"]]]:
    """P(n | s), mean over heads, some rows at a time: what each position reads."""
    for span, attention, _ in attention_rows(query, key, tile):
        yield span, attention.mean(dim=1)

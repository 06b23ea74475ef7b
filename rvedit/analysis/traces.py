"""How alike two traces are (Fig. 4b), and what Eq. 5 can teach from them.

A trace A^(i) is the output of a block's cross-attention, one row a_s of width d for each position s.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rvedit.losses.alignment import alignment_loss


@dataclass(frozen=True)
class TraceSimilarity:
    """Of the editing branch's trace to the reference's, mean over the batch."""

    cosine: float
    """Mean over positions of cos(a_s, a*_s): -1 ... 1."""
    js: float
    """Jensen-Shannon divergence of the two energy maps, to base 2: 0 (the same) ... 1 (apart)."""
    alignment: float
    """Eq. 5; ln S where nothing tells a position from another."""
    spread: float
    """Of the editing branch's features over positions: 0 (all point the same way) ... 1."""


def trace_similarity(
    trace: Float[Tensor, "b s d"], reference: Float[Tensor, "b s d"], temperature: float
) -> TraceSimilarity:
    """Cosine, divergence, the loss of Eq. 5 at this temperature, and the spread."""
    return TraceSimilarity(
        cosine_similarity(trace, reference),
        js_divergence(trace, reference),
        float(alignment_loss(trace, reference, temperature)),
        trace_spread(trace),
    )


def cosine_similarity(trace: Float[Tensor, "b s d"], reference: Float[Tensor, "b s d"]) -> float:
    """Mean over positions of the cosine between the two rows of a position: what is written there."""
    return float(F.cosine_similarity(_precise(trace), _precise(reference), dim=-1).mean())


def js_divergence(trace: Float[Tensor, "b s d"], reference: Float[Tensor, "b s d"]) -> float:
    """Jensen-Shannon divergence, to base 2, of where the two traces write.

    A trace's energy map is p(s) = |a_s| / sum_s |a_s|, normalised over the positions of a clip; with
    m = (p + p*) / 2 it is (KL(p || m) + KL(p* || m)) / 2. Rows' directions are cosine similarity's matter.
    """
    p, q = (_energy(x) for x in (trace, reference))
    middle = (p + q) / 2
    divergence = sum(torch.xlogy(x, x) - torch.xlogy(x, middle) for x in (p, q))
    assert isinstance(divergence, Tensor)
    bits = divergence.sum(dim=-1).mean() / 2 / torch.log(torch.tensor(2.0))
    return max(0.0, float(bits))


def trace_spread(trace: Float[Tensor, "b s d"]) -> float:
    """1 - |mean of the rows' unit vectors|^2: one less the mean cosine over all pairs of positions."""
    mean = F.normalize(_precise(trace), dim=-1).mean(dim=1)
    return float((1 - mean.square().sum(dim=-1)).mean())


def _energy(trace: Tensor) -> Tensor:
    lengths = _precise(trace).norm(dim=-1)
    return lengths / lengths.sum(dim=-1, keepdim=True).clamp_min(1e-12)


def _precise(trace: Tensor) -> Tensor:
    return trace.to(torch.promote_types(trace.dtype, torch.float32))

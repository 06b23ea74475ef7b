"""Similarity of two traces (Fig. 4b), and the statistics that bound the loss of Eq. 5.

A trace A^(i) is the output of a block's cross-attention, one row a_s of width d for each position s.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rvedit.losses.alignment import alignment_loss


class TraceSimilarity(NamedTuple):
    """Similarity of the editing branch's trace to the reference's, mean over the batch."""

    cosine: float
    """Mean over positions of cos(a_s, a*_s): -1 ... 1."""
    js: float
    """Jensen-Shannon divergence of the energy maps, in bits: 0 (equal) ... 1 (disjoint)."""
    alignment: float
    """The loss of Eq. 5; ln S if all positions are alike."""
    spread: float
    """Spread of the editing branch's features over positions: 0 (all in one direction) ... 1."""


def trace_similarity(
    trace: Float[Tensor, "b s d"], reference: Float[Tensor, "b s d"], temperature: float
) -> TraceSimilarity:
    """Return the cosine, the divergence, the loss of Eq. 5 at this temperature, and the spread."""
    return TraceSimilarity(
        cosine_similarity(trace, reference),
        js_divergence(trace, reference),
        float(alignment_loss(trace, reference, temperature)),
        trace_spread(trace),
    )


def cosine_similarity(trace: Float[Tensor, "b s d"], reference: Float[Tensor, "b s d"]) -> float:
    """Return the mean over positions of the cosine between the two rows of a position."""
    return float(F.cosine_similarity(_at_least_fp32(trace), _at_least_fp32(reference), dim=-1).mean())


def js_divergence(trace: Float[Tensor, "b s d"], reference: Float[Tensor, "b s d"]) -> float:
    """Return the Jensen-Shannon divergence of the two energy maps in bits.

    A trace's energy map is p(s) = |a_s| / sum_s |a_s|, normalized over the positions of a clip; with
    m = (p + p*) / 2 the divergence is (KL(p || m) + KL(p* || m)) / 2. Directions of rows do not matter.
    """
    energies = torch.stack([_energy(trace), _energy(reference)])
    divergence = torch.xlogy(energies, energies) - torch.xlogy(energies, energies.mean(dim=0))
    bits = divergence.sum(dim=0).sum(dim=-1).mean() / 2 / torch.log(torch.tensor(2.0))
    return max(0.0, float(bits))


def trace_spread(trace: Float[Tensor, "b s d"]) -> float:
    """Return 1 - |mean of the rows' unit vectors|^2: 1 minus the mean cosine of all pairs of positions."""
    mean = F.normalize(_at_least_fp32(trace), dim=-1).mean(dim=1)
    return float((1 - mean.square().sum(dim=-1)).mean())


def _energy(trace: Tensor) -> Tensor:
    lengths = _at_least_fp32(trace).norm(dim=-1)
    return lengths / lengths.sum(dim=-1, keepdim=True).clamp_min(1e-12)


def _at_least_fp32(trace: Tensor) -> Tensor:
    return trace.to(torch.promote_types(trace.dtype, torch.float32))

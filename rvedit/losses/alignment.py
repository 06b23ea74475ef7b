"""Reference-anchored attention alignment (section 4.3, Eqs. 4-5), in memory linear in S.

Neither the S x S similarity matrix nor normalized copies of the traces are stored. The forward pass computes
the log-sum-exp of every row and column tile by tile; the backward pass recomputes the tiles and allocates
only the S x d gradient.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

CHUNK = 1024


def alignment_loss(
    trace: Float[Tensor, "b s d"],
    reference_trace: Float[Tensor, "b s d"],
    temperature: float = 0.07,
    chunk: int = CHUNK,
) -> Float[Tensor, ""]:
    """Return -I(A; A*) of Eq. 5: the symmetric InfoNCE loss between two traces, mean over the batch.

    Row i of the editing branch's trace is the positive of row i of the reference trace; the other S - 1 rows
    are negatives, in both directions. The reference is detached. The loss of uniform features is ln S. (The
    paper prints exp(a_j . a_i) in the second denominator; this uses exp(a_j . a*_i), since its text calls the
    loss symmetric.) Computed in fp32, or in fp64 if `trace` is fp64, in tiles of `chunk` x `chunk`.
    """
    loss: Tensor = _StreamedInfoNCE.apply(trace, reference_trace.detach(), temperature, chunk)
    return loss


class _StreamedInfoNCE(torch.autograd.Function):
    """Eq. 5 with l_ij = a_i . a*_j / tau, where a_i and a*_j are rows of unit length."""

    @staticmethod
    def forward(ctx: Any, trace: Tensor, reference: Tensor, temperature: float, chunk: int) -> Tensor:
        precision = torch.promote_types(trace.dtype, torch.float32)
        row_lse = trace.new_full(trace.shape[:2], -torch.inf, dtype=precision)
        column_lse, positives = row_lse.clone(), torch.empty_like(row_lse)
        spans = [slice(start, start + chunk) for start in range(0, trace.shape[1], chunk)]
        with torch.autocast(trace.device.type, enabled=False):
            for i in spans:
                rows = F.normalize(trace[:, i].to(precision), dim=-1)
                for j in spans:
                    columns = F.normalize(reference[:, j].to(precision), dim=-1)
                    logits = rows @ columns.mT / temperature
                    row_lse[:, i] = torch.logaddexp(row_lse[:, i], logits.logsumexp(dim=2))
                    column_lse[:, j] = torch.logaddexp(column_lse[:, j], logits.logsumexp(dim=1))
                    if i == j:
                        positives[:, i] = logits.diagonal(dim1=1, dim2=2)
        ctx.save_for_backward(trace, reference, row_lse, column_lse)
        ctx.temperature, ctx.spans = temperature, spans
        return (0.5 * (row_lse + column_lse) - positives).mean()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        """Return dL/da; dL/dl_ij = (softmax_j + softmax_i - 2 [i = j]) / 2bS and dl_ij/da_i = a*_j / tau."""
        trace, reference, row_lse, column_lse = ctx.saved_tensors
        gradient = torch.empty_like(trace)
        scale = grad_outputs[0] / (2 * row_lse.numel() * ctx.temperature)
        with torch.autocast(trace.device.type, enabled=False):
            for i in ctx.spans:
                rows = trace[:, i].to(row_lse.dtype)
                length = rows.norm(dim=-1, keepdim=True).clamp_min(1e-12)
                rows = rows / length
                row_gradient = torch.zeros_like(rows)
                for j in ctx.spans:
                    columns = F.normalize(reference[:, j].to(rows.dtype), dim=-1)
                    logits = rows @ columns.mT / ctx.temperature
                    weights = (logits - row_lse[:, i, None]).exp_()
                    weights += logits.sub_(column_lse[:, None, j]).exp_()
                    if i == j:
                        weights.diagonal(dim1=1, dim2=2).sub_(2)
                    row_gradient.baddbmm_(weights, columns)
                radial = (rows * row_gradient).sum(dim=-1, keepdim=True)  # removed by the normalization
                gradient[:, i] = (row_gradient - rows * radial) * (scale / length)
        return gradient, None, None, None

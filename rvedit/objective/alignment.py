"""Reference-anchored attention alignment (section 4.3, Eqs. 4-5), in memory linear in S.

The S x S matrix of similarities is never kept. One pass over chunks of rows collects the log-sum-exp of
every row and every column, which is the loss; the backward pass recomputes each chunk and has the gradient.
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
    """-I(A; A*) of Eq. 5: symmetric InfoNCE between two traces, mean over the batch.

    Row i of the editing branch's trace is pulled to row i of the reference's, and pushed from the other
    S - 1 rows, in both directions. The reference is detached: it is a fixed anchor. At uniform features the
    loss is ln S. (The printed second term normalises over exp(a_j . a_i); it is read as exp(a_j . a*_i), the
    only reading that is symmetric as the text says.)

    `chunk` rows of similarities are held at a time: chunk x S values.
    """
    rows = F.normalize(trace if trace.dtype == torch.float64 else trace.float(), dim=-1)
    columns = F.normalize(reference_trace.detach().to(rows.dtype), dim=-1)
    losses = [_StreamedInfoNCE.apply(a, b, temperature, chunk) for a, b in zip(rows, columns, strict=True)]
    return torch.stack(losses).mean()


class _StreamedInfoNCE(torch.autograd.Function):
    """Eq. 5 for one clip; l_ij = a_i . a*_j / tau."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, temperature: float, chunk: int) -> Tensor:
        with torch.autocast(rows.device.type, enabled=False):
            row_lse = rows.new_empty(len(rows))
            column_lse = rows.new_full((len(rows),), -torch.inf)
            for start in range(0, len(rows), chunk):
                logits = rows[start : start + chunk] @ columns.T / temperature
                row_lse[start : start + chunk] = logits.logsumexp(dim=1)
                column_lse = torch.logaddexp(column_lse, logits.logsumexp(dim=0))
            positives = (rows * columns).sum(dim=1) / temperature
        ctx.save_for_backward(rows, columns, row_lse, column_lse)
        ctx.temperature, ctx.chunk = temperature, chunk
        return (0.5 * (row_lse + column_lse) - positives).mean()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        """dL/dl_ij = (softmax over j + softmax over i - 2 [i = j]) / 2S, then dl_ij/da_i = a*_j / tau."""
        rows, columns, row_lse, column_lse = ctx.saved_tensors
        gradient = torch.empty_like(rows)
        with torch.autocast(rows.device.type, enabled=False):
            for start in range(0, len(rows), ctx.chunk):
                span = slice(start, start + ctx.chunk)
                logits = rows[span] @ columns.T / ctx.temperature
                weights = (logits - row_lse[span, None]).exp_() + logits.sub_(column_lse).exp_()
                gradient[span] = weights @ columns - 2 * columns[span]
        return gradient * (grad_outputs[0] / (2 * len(rows) * ctx.temperature)), None, None, None

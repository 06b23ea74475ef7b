"""Eq. 5, streamed, against the plain S x S matrix and against numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rvedit.losses.alignment import alignment_loss

DOUBLE = torch.float64


def materialised(trace: Tensor, reference: Tensor, temperature: float) -> Tensor:
    """Eq. 5 as it is printed: minus the mean log-probability of the pair (i, i), both ways."""
    losses = []
    for a, b in zip(trace, reference, strict=True):
        a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
        similarity = (a @ b.T / temperature).exp()
        forward = similarity.diagonal() / similarity.sum(dim=1)
        backward = similarity.diagonal() / similarity.sum(dim=0)
        losses.append(-(forward.log() + backward.log()).mean() / 2)
    return sum(losses) / len(losses)


def traces(batch: int, length: int, width: int = 5, dtype: torch.dtype = DOUBLE) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 * batch + length)
    a, b = torch.randn(2, batch, length, width, dtype=DOUBLE, generator=generator)
    return (3 * a).to(dtype), b.to(dtype)


@pytest.mark.parametrize("chunk", [1, 3, 8, 64])
@pytest.mark.parametrize("length", [1, 2, 7, 16])
@pytest.mark.parametrize("batch", [1, 3])
def test_loss_and_gradient_are_those_of_the_plain_matrix(batch: int, length: int, chunk: int) -> None:
    trace, reference = traces(batch, length)
    streamed_input, plain_input = trace.clone().requires_grad_(), trace.clone().requires_grad_()
    streamed = alignment_loss(streamed_input, reference, 0.2, chunk)
    plain = materialised(plain_input, reference, 0.2)
    assert_close(streamed, plain, rtol=0, atol=1e-9)
    (2.5 * streamed).backward()
    (2.5 * plain).backward()
    assert_close(streamed_input.grad, plain_input.grad, rtol=0, atol=1e-9)
    if length > 1:
        assert plain_input.grad.abs().max() > 1e-3


def test_the_default_temperature_is_the_papers() -> None:
    trace, reference = traces(2, 6)
    assert_close(alignment_loss(trace, reference), materialised(trace, reference, 0.07), rtol=0, atol=1e-9)


def test_two_equal_axes_worked_out_by_hand() -> None:
    # a = a* = the two axes, tau = 1: similarities [[1, 0], [0, 1]].
    # Every row and column: -ln(e / (e + 1)) = ln(1 + 1/e).
    axes = torch.eye(2, dtype=DOUBLE)[None]
    assert_close(alignment_loss(axes, axes, 1.0).item(), math.log(1 + math.exp(-1)))


def test_a_case_whose_two_directions_differ_worked_out_by_hand() -> None:
    # a_1 = (1, 0), a_2 = (0, 1); a*_1 = a*_2 = (1, 0); tau = 1: similarities [[1, 1], [0, 0]].
    # Rows:    -ln(e / 2e) = ln 2 and -ln(1 / 2) = ln 2;                     mean ln 2.
    # Columns: -ln(e / (e + 1)) = ln(1 + e) - 1 and -ln(1 / (e + 1)) = ln(1 + e); mean ln(1 + e) - 1/2.
    trace = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], dtype=DOUBLE)
    reference = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]], dtype=DOUBLE)
    by_hand = (math.log(2) + math.log(1 + math.e) - 0.5) / 2
    assert_close(alignment_loss(trace, reference, 1.0).item(), by_hand)


@pytest.mark.parametrize("length", [1, 5, 33])
def test_uniform_features_give_ln_s(length: int) -> None:
    rows = torch.ones(2, length, 4, dtype=DOUBLE)
    assert_close(alignment_loss(rows, 7 * rows, 0.07, chunk=8).item(), math.log(length), rtol=0, atol=1e-9)


def test_no_gradient_reaches_the_reference() -> None:
    trace, reference = (x.requires_grad_() for x in traces(2, 7))
    alignment_loss(trace, reference).backward()
    assert reference.grad is None
    assert trace.grad.abs().sum() > 0


def test_its_arguments_may_be_swapped() -> None:
    trace, reference = traces(2, 9)
    assert_close(alignment_loss(trace, reference, chunk=4), alignment_loss(reference, trace, chunk=4))


def test_only_directions_count() -> None:
    trace, reference = traces(2, 9)
    scale = torch.linspace(0.1, 20, 9, dtype=DOUBLE)[None, :, None]
    assert_close(alignment_loss(scale * trace, reference.flip(1)), alignment_loss(trace, reference.flip(1)))
    assert_close(alignment_loss(trace, scale * reference), alignment_loss(trace, reference))


def test_aligned_traces_cost_less_than_shuffled_ones() -> None:
    trace, _ = traces(2, 9)
    assert alignment_loss(trace, trace) < 0.1 < alignment_loss(trace, trace.roll(1, dims=1))


def test_bf16_traces_under_autocast_are_compared_in_fp32() -> None:
    trace, reference = traces(2, 200, width=64, dtype=torch.bfloat16)
    trace.requires_grad_()
    exact_input = trace.detach().to(DOUBLE).requires_grad_()
    exact = materialised(exact_input, reference.to(DOUBLE), 0.07)
    with torch.autocast("cpu", torch.bfloat16):
        loss = alignment_loss(trace, reference, chunk=64)
        loss.backward()
    exact.backward()
    assert loss.dtype == torch.float32
    assert abs(loss.item() - exact.item()) < 1e-5 * exact.item()
    # The gradient arrives in the trace's own bf16: 8 bits.
    assert (trace.grad.to(DOUBLE) - exact_input.grad).norm() < 4e-3 * exact_input.grad.norm()


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.largest = max(self.largest, *sizes, 0)
        return result


def test_memory_grows_with_s_and_with_the_chunk_never_with_s_squared() -> None:
    length, chunk = 4096, 256
    trace, reference = traces(1, length, width=8, dtype=torch.float32)
    trace.requires_grad_()
    with LargestTensor() as forward:
        loss = alignment_loss(trace, reference, chunk=chunk)
    with LargestTensor() as backward:
        loss.backward()
    assert forward.largest == backward.largest == max(chunk * chunk, trace.numel())

"""Looking on while a transformer runs: its cross-attentions' queries and keys, and their outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from rvedit.models.cross_attention import RoutedCrossAttnProcessor
from rvedit.models.transformer import RoutedWanTransformer3DModel

OnAttention = Callable[[int, Tensor, Tensor], None]
"""Gets the block (1 ... L), queries (b, s, h, e) and keys (b, n, h, e)."""
OnTrace = Callable[[int, Tensor], None]
"""Gets the block (1 ... L) and A^(i), (b, s, d)."""


class _ObservedProcessor(RoutedCrossAttnProcessor):
    """Attends as it does unobserved; shows queries and keys to an onlooker first."""

    def __init__(self, block: int, on_attention: OnAttention, backend: str | None) -> None:
        self._block, self._on_attention = block, on_attention
        self._attention_backend = backend  # type: ignore[assignment]  # a class attribute of diffusers

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `RoutedCrossAttnProcessor.attend`."""
        self._on_attention(self._block, query, key)
        return super().attend(query, key, value)


@contextmanager
def observed_attention(transformer: RoutedWanTransformer3DModel, on_attention: OnAttention) -> Iterator[None]:
    """Show every cross-attention of the forward passes within; afterwards all is as it was."""
    before = [block.attn2.processor for block in transformer.blocks]
    for number, block in enumerate(transformer.blocks, start=1):
        backend = block.attn2.processor._attention_backend
        block.attn2.set_processor(_ObservedProcessor(number, on_attention, backend))
    try:
        yield
    finally:
        for block, processor in zip(transformer.blocks, before, strict=True):
            block.attn2.set_processor(processor)


@contextmanager
def observed_traces(transformer: RoutedWanTransformer3DModel, on_trace: OnTrace) -> Iterator[None]:
    """Show A^(i) of every block of the forward passes within."""

    def hook(number: int) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda module, inputs, output: on_trace(number, output)

    handles = [
        block.attn2.register_forward_hook(hook(number))
        for number, block in enumerate(transformer.blocks, start=1)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

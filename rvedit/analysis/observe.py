"""Observe a transformer's cross-attention while it runs: queries and keys, heads' outputs, and traces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from einops import rearrange
from torch import Tensor

from rvedit.compat import attention_backend
from rvedit.models.cross_attention import RoutedCrossAttnProcessor
from rvedit.models.transformer import RoutedWanTransformer3DModel

OnAttention = Callable[[int, Tensor, Tensor], None]
"""Called with the block (1 ... L), queries (b, s, h, e) and keys (b, n, h, e)."""


class _ObservedProcessor(RoutedCrossAttnProcessor):
    """Processor that passes queries and keys to a callback, with unchanged results."""

    def __init__(self, block: int, on_attention: OnAttention, backend: str | None) -> None:
        self._block, self._on_attention = block, on_attention
        self._attention_backend = backend  # type: ignore[assignment]  # a class attribute of diffusers

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `RoutedCrossAttnProcessor.attend`."""
        self._on_attention(self._block, query, key)
        return super().attend(query, key, value)


@contextmanager
def observed_attention(transformer: RoutedWanTransformer3DModel, on_attention: OnAttention) -> Iterator[None]:
    """Call `on_attention` for every cross-attention within the context; restore the processors at its end."""
    with ExitStack() as restore:
        for number, block in enumerate(transformer.blocks, start=1):
            processor = block.attn2.processor
            restore.callback(block.attn2.set_processor, processor)
            backend = attention_backend(processor)
            block.attn2.set_processor(_ObservedProcessor(number, on_attention, backend))
        yield


@contextmanager
def observed_outputs(
    transformer: RoutedWanTransformer3DModel, on_output: Callable[[int, Tensor], None]
) -> Iterator[None]:
    """Call `on_output` with number (1 ... L) and cross-attention output (b, s, h, e) of every block.

    It is the output of each head, before it is projected to the trace.
    """
    with ExitStack() as hooks:
        for number, block in enumerate(transformer.blocks, start=1):
            heads = block.attn2.heads
            handle = block.attn2.to_out[0].register_forward_pre_hook(
                lambda module, inputs, number=number, heads=heads: on_output(
                    number, rearrange(inputs[0], "b s (h e) -> b s h e", h=heads)
                )
            )
            hooks.enter_context(handle)
        yield


@contextmanager
def observed_traces(
    transformer: RoutedWanTransformer3DModel, on_trace: Callable[[int, Tensor], None]
) -> Iterator[None]:
    """Call `on_trace` with number (1 ... L) and trace A^(i) (b, s, d) of every block within the context."""
    with ExitStack() as hooks:
        for number, block in enumerate(transformer.blocks, start=1):
            handle = block.attn2.register_forward_hook(
                lambda module, inputs, output, number=number: on_trace(number, output)
            )
            hooks.enter_context(handle)
        yield

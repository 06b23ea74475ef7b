"""Peak memory of code, measured on the meta device, whose tensors have shapes but no data.

The modules of an edit run there, and the storage of every tensor is counted while it exists. Fused attention
has no S x N matrix, but would fall back to one on the meta device, so it is replaced by an empty result.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rvedit.compat import TorchDispatchMode, storage_key, tree_iter


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that operators create, until they are freed: `now` and `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operator and count new storages; views of older ones are not counted."""
        self._count((args, kwargs), new=False)
        out = func(*args, **(kwargs or {}))
        self._count(out, new=True)
        return out

    def _count(self, tensors: Any, new: bool) -> None:
        for value in tree_iter(tensors):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                key = storage_key(value)
                if key not in self._sizes:
                    self._sizes[key] = storage.nbytes() * new
                    self.now += self._sizes[key]
                    self.peak = max(self.peak, self.now)
                    # Inputs need this too, as a later storage may have the same address.
                    weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


class _FusedAttention(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            query = args[0] if args else (kwargs or {})["query"]
            return torch.empty_like(query)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def peak_bytes(call: Callable[[], Any]) -> int:
    """Return the peak bytes of a call on the meta device, without its inputs and weights."""
    with _FusedAttention(), LiveBytes() as live:
        call()
    return live.peak

"""What code holds in memory, found by running it without storage: on tensors that have shapes alone.

The very modules that edit are called on the meta device, and every tensor's storage is counted while it
lives. Fused attention holds no S x N matrix; on the meta device it would fall back to one, so it is given its
result's shape instead.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make, from making to end: `now` and `peak`, in bytes."""

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
        """Run the operation and count what is new: a view of what was there before is not."""
        self._count((args, kwargs), new=False)
        out = func(*args, **(kwargs or {}))
        self._count(out, new=True)
        return out

    def _count(self, tensors: Any, new: bool) -> None:
        for value in tree_iter(tensors):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                key = storage._cdata
                if key not in self._sizes:
                    self._sizes[key] = storage.nbytes() * new
                    self.now += self._sizes[key]
                    self.peak = max(self.peak, self.now)
                    # Also of what is not counted: another storage may come to lie where it lay.
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
    """The most that a call holds at a time beside what it is given; its models lie on the meta device."""
    with _FusedAttention(), LiveBytes() as live:
        call()
    return live.peak

"""Python objects without the values of their parameters, for processes that will hold only a part of them."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class _SkeletonPickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, nn.Parameter):
            return _on_meta, (tuple(value.shape), value.dtype, value.requires_grad)
        return NotImplemented


def _on_meta(shape: Sequence[int], dtype: torch.dtype, requires_grad: bool) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad)


def skeleton_of(value: Any) -> bytes:
    """Return an object, pickled, with its parameters on the meta device; shared parameters stay shared.

    It is for other processes of the same run, never for files.
    """
    stream = io.BytesIO()
    _SkeletonPickler(stream).dump(value)
    return stream.getvalue()

"""Named tensors in safetensors files, written by several processes, each its own parts.

A file's metadata state where each tensor's part begins along its first dimension; a file without them, of an
earlier version, holds whole tensors. Any number of processes can read them, each the rows that it needs.

`torch.distributed.checkpoint` has a writer of safetensors, too. It copies all tensors of a process once more
to serialize them, and coordinates the processes from its background thread.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from rvedit.training.distributed import as_shard, first_row, local_tensor

FILE_BYTES = 4_000_000_000
FIRST_ROWS = "first_rows"
"""Key of the metadata: {name: index of the part's first row} as JSON."""


class Part(NamedTuple):
    """Consecutive rows of a tensor, on the CPU."""

    rows: Tensor
    first: int


def write_parts(folder: Path, group: str, rank: int, parts: Mapping[str, Part]) -> None:
    """Write a process's parts as `folder/GROUP-RANK-NUMBER.safetensors`, of about `FILE_BYTES` each."""
    for number, chunk in enumerate(_chunks(parts), start=1):
        first_rows = {name: part.first for name, part in chunk.items()}
        file = folder / f"{group}-{rank:05d}-{number:05d}.safetensors"
        save_file(
            {name: part.rows for name, part in chunk.items()}, file, {FIRST_ROWS: json.dumps(first_rows)}
        )
        with open(file, "rb") as written:  # a checkpoint is complete when its files are on the disk
            os.fsync(written.fileno())


def _chunks(parts: Mapping[str, Part]) -> Iterator[dict[str, Part]]:
    chunk: dict[str, Part] = {}
    size = 0
    for name, part in parts.items():
        chunk[name] = part
        size += part.rows.nbytes
        if size > FILE_BYTES:
            yield chunk
            chunk, size = {}, 0
    if chunk:
        yield chunk


class StoredTensors:
    """The tensors of a group in a folder; they are read when asked for."""

    def __init__(self, folder: Path, group: str):
        self.parts: dict[str, list[tuple[int, Any]]] = defaultdict(list)
        for file in sorted(folder.glob(f"{group}-*.safetensors")):
            content: Any = safe_open(file, "pt")
            first_rows = json.loads((content.metadata() or {}).get(FIRST_ROWS, "{}"))
            for name in content.keys():  # noqa: SIM118 (not a mapping)
                self.parts[name].append((first_rows.get(name, 0), content))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a whole tensor."""
        first, content = max(self.parts[name], key=lambda part: part[0])
        shape = content.get_slice(name).get_shape()
        return (first + shape[0], *shape[1:]) if shape else ()

    def read(self, name: str, like: Tensor) -> Tensor:
        """Return a tensor on the device of `like`.

        If that is a shard of a tensor of its shape, return the same shard, for which only its rows are read.
        """
        shape = self.shape(name)
        if not isinstance(like, DTensor) or shape != tuple(like.shape):
            return self._rows(name, 0, shape[0] if shape else 1).to(like.device)
        first = first_row(like)
        rows = self._rows(name, first, first + len(local_tensor(like)))
        return as_shard(rows.to(like.device), like)

    def _rows(self, name: str, first: int, end: int) -> Tensor:
        found = []
        for start, content in sorted(self.parts[name], key=lambda part: part[0]):
            stored = content.get_slice(name)
            if not stored.get_shape():
                return content.get_tensor(name)
            found.append(stored[max(first - start, 0) : max(end - start, 0)])
        return found[0] if len(found) == 1 else torch.cat(found)

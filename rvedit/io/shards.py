"""Division of a job among processes that do not talk to each other: `--shard I/N`, and torchrun's ranks."""

from __future__ import annotations

import os
import re

from rvedit.io.errors import UserError

Shard = tuple[int, int]
"""(i, n): this is process i of n, counted from 0."""


def read_shard(text: str) -> Shard:
    """Parse `2/8`, the second of eight processes, as (1, 8). Raises UserError."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"`shard` {text}: give I/N, such as 1/4 for the first of four")
    return int(match[1]) - 1, int(match[2])


def add_torchrun(shard: Shard) -> Shard:
    """Return this process's part of a shard that the processes of torchrun divide further."""
    rank, count = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    return shard[0] * count + rank, shard[1] * count

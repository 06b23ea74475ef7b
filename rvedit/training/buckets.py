"""Which shape each step's batch has.

A batch is of one shape, so that its samples stack; batches of several shapes take turns. All of it is a pure
function of seed and step: a resumed run goes on in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rvedit.training.recipe import DataRecipe


def is_still(data: DataRecipe, step: int) -> bool:
    """Whether a step's batch is of first frames only."""
    return np.random.default_rng([data.seed, step, 1]).random() < data.still_share


class BucketSchedule:
    """The bucket of each step's batch, drawn by weight."""

    def __init__(self, seed: int, weights: Sequence[float]):
        self.seed = seed
        self.edges = np.cumsum(weights) / np.sum(weights)
        self.drawn: list[tuple[int, int]] = []
        self.counts = [0] * len(weights)

    def __getitem__(self, step: int) -> tuple[int, int]:
        """A step's bucket, and how many batches of that bucket came before."""
        if len(self.counts) == 1:
            return 0, step
        while len(self.drawn) <= step:
            value = np.random.default_rng([self.seed, len(self.drawn), 4]).random()
            bucket = int(np.searchsorted(self.edges, value, side="right"))
            self.drawn.append((bucket, self.counts[bucket]))
            self.counts[bucket] += 1
        return self.drawn[step]

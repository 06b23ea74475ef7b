"""The shape bucket of each step's batch.

All samples of a batch have one shape. The order of the buckets is a pure function of seed and step, so that a
resumed run continues in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rvedit.training.recipe_sections import DataRecipe


def is_still(data: DataRecipe, step: int) -> bool:
    """Return whether a step's batch has only first frames."""
    return np.random.default_rng([data.seed, step, 1]).random() < data.still_share


def has_pictures(data: DataRecipe, step: int) -> bool:
    """Return whether a step's batch of the playground has reference images."""
    return np.random.default_rng([data.seed, step, 5]).random() < data.reference_share


def drops_pictures(data: DataRecipe, step: int) -> bool:
    """Return whether a step's batch is trained without the reference images that it has."""
    return np.random.default_rng([data.seed, step, 6]).random() < data.reference_dropout


class BucketSchedule:
    """The bucket of each step's batch, drawn with probabilities proportional to `weights`."""

    def __init__(self, seed: int, weights: Sequence[float]):
        self.seed = seed
        self.edges = np.cumsum(weights) / np.sum(weights)
        self.drawn: list[tuple[int, int]] = []
        self.counts = [0] * len(weights)

    def __getitem__(self, step: int) -> tuple[int, int]:
        """Return a step's bucket and the number of earlier batches of that bucket."""
        if len(self.counts) == 1:
            return 0, step
        while len(self.drawn) <= step:
            value = np.random.default_rng([self.seed, len(self.drawn), 4]).random()
            bucket = int(np.searchsorted(self.edges, value, side="right"))
            self.drawn.append((bucket, self.counts[bucket]))
            self.counts[bucket] += 1
        return self.drawn[step]

"""Which shape each step's batch has, and which triplets of a manifest go into which bucket.

A batch is of one shape, so that its samples stack; batches of several shapes take turns. All of it is a pure
function of seed and step: a resumed run goes on in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rvedit.errors import UserError
from rvedit.pipeline import RVEDiTPipeline
from rvedit.recipes import DataRecipe
from rvedit.records import ClipShape, Triplet


def check_shapes(shapes: Sequence[ClipShape], pipeline: RVEDiTPipeline) -> None:
    """Raises UserError for clips of another length than 4k+1, or of a size that patches do not fill."""
    vae, patch = pipeline.vae.config, pipeline.transformer.config.patch_size
    grid, group = vae.scale_factor_spatial * patch[1], vae.scale_factor_temporal
    for shape in shapes:
        if (shape.num_frames - 1) % group:
            raise UserError(f"{shape}: the VAE takes {group}k+1 frames, not {shape.num_frames}")
        if shape.height % grid or shape.width % grid:
            rows, columns = (max(grid, round(side / grid) * grid) for side in (shape.height, shape.width))
            raise UserError(f"{shape}: height and width must be multiples of {grid}: try {rows}x{columns}")


def is_still(data: DataRecipe, step: int) -> bool:
    """Whether a step's batch is of first frames only."""
    return np.random.default_rng([data.seed, step, 1]).random() < data.still_share


def fitting_bucket(shapes: Sequence[ClipShape], triplet: Triplet) -> int | None:
    """The bucket of a triplet: of those that its clips fill, the nearest in shape, and then the longest.

    A single bucket takes all: a clip that is too short for it is told by name where it is read. Shapes are
    compared by the logarithm of width over height, so that portrait and landscape are alike.
    """

    def distance(index: int) -> tuple[float, int]:
        shape = shapes[index]
        ratio = (triplet.width / triplet.height) / (shape.width / shape.height)
        return round(abs(math.log(ratio)), 6), -shape.num_frames

    if len(shapes) == 1:
        return 0
    filled = [i for i, shape in enumerate(shapes) if shape.num_frames <= triplet.num_frames]
    return min(filled, key=distance, default=None)


class BucketOrder:
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

"""The triplets of a run as minibatches: rendered, read from a manifest's clips, or taken from a cache.

Whatever the source, sample number n of a run is a function of n and the recipe alone.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rvedit.data.cache import LatentCache
from rvedit.data.clips import read_pair
from rvedit.data.manifest import read_manifest
from rvedit.data.playground import render, sample_triplet
from rvedit.errors import UserError
from rvedit.recipes import Recipe
from rvedit.records import Triplet
from rvedit.training.loop import is_still
from rvedit.training.step import Premise, TripletBatch
from rvedit.video_tensors import Frames, resize_frames, to_model_range

Item = TypeVar("Item")


@dataclass(frozen=True)
class Side:
    """One clip of a triplet: pixels or latents, what the multimodal LLM sees of it, and the words."""

    clip: Tensor | None
    latents: Tensor | None
    seen: Frames
    text: str


@dataclass(frozen=True)
class Sample:
    """A triplet, and its number in the run."""

    number: int
    source: Side
    target: Side


@dataclass(frozen=True)
class Sight:
    """What the multimodal LLM sees of a clip."""

    frames: int
    """At most so many, evenly spread."""
    height: int
    """Pixels."""
    width: int

    def __call__(self, clip: Frames) -> Frames:
        """The frames of a clip that it sees."""
        seen = np.unique(np.linspace(0, len(clip) - 1, self.frames).round().astype(int))
        return resize_frames(clip[seen], self.height, self.width)


class _Samples(Dataset[Sample]):
    """Sample n: a triplet as pixels, some without their words."""

    def __init__(self, recipe: Recipe, sight: Sight):
        self.recipe = recipe
        self.data = recipe.data
        self.sight = sight

    def __getitem__(self, number: int) -> Sample:
        rng = np.random.default_rng([self.data.seed, number, 2])
        sides, instruction, caption = self.sides(number, rng)
        # Both are drawn whatever the shares, so that a change of one leaves the rest of the data as it is.
        drops = rng.random(2)
        texts = (
            "" if drops[0] < self.data.instruction_dropout else instruction,
            "" if drops[1] < self.data.caption_dropout else caption,
        )
        source, target = (Side(*side, text) for side, text in zip(sides, texts, strict=True))
        return Sample(number, source, target)

    def sides(
        self, number: int, rng: np.random.Generator
    ) -> tuple[Sequence[tuple[Tensor | None, Tensor | None, Frames]], str, str]:
        """(pixels, latents, frames seen) of source and target, the instruction and the caption."""
        raise NotImplementedError

    def frames_of(self, number: int) -> int:
        """Frames of a sample: its whole batch is of stills or of clips."""
        return 1 if is_still(self.data, number // self.recipe.batch_size) else self.data.num_frames

    def as_pixels(self, clips: Iterable[Frames]) -> list[tuple[Tensor, None, Frames]]:
        """The sides of two clips."""
        return [(to_model_range(clip), None, self.sight(clip)) for clip in clips]


class PlaygroundSamples(_Samples):
    """Triplets rendered on the spot."""

    def sides(self, number: int, rng: np.random.Generator) -> tuple[Any, str, str]:
        """See `_Samples`."""
        data = self.data
        triplet = sample_triplet(data.seed, number % data.count)
        start = int(rng.integers(24))
        scenes = (triplet.source, triplet.target)
        clips = [render(s, self.frames_of(number), data.height, data.width, start) for s in scenes]
        return self.as_pixels(clips), triplet.instruction, triplet.target_caption


class ManifestSamples(_Samples):
    """The triplets of a manifest, in an order drawn anew for each epoch."""

    def __init__(self, recipe: Recipe, sight: Sight, manifest: Path, captions: bool):
        super().__init__(recipe, sight)
        self.manifest = manifest
        self.triplets = read_manifest(manifest)
        self.order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))
        missing = sum(t.target_caption is None for t in self.triplets)
        if captions and missing:
            raise UserError(
                f"{manifest}: {missing} of {len(self.triplets)} rows have no target_caption, which alignment "
                "reads: write them with `rvedit caption`, or switch it off with --set alignment.weight=0"
            )

    def triplet(self, number: int) -> Triplet:
        """The row of a sample number."""
        epoch, index = divmod(number, len(self.triplets))
        if self.order[0] != epoch:  # drawn once an epoch, not once a sample
            rng = np.random.default_rng([self.data.seed, epoch, 3])
            self.order = (epoch, rng.permutation(len(self.triplets)))
        return self.triplets[self.order[1][index]]

    def sides(self, number: int, rng: np.random.Generator) -> tuple[Any, str, str]:
        """See `_Samples`."""
        triplet = self.triplet(number)
        data = self.data
        clips = read_pair(self.manifest, triplet, self.frames_of(number), data.height, data.width)
        return self.as_pixels(clips), triplet.instruction, triplet.target_caption or ""


class CachedSamples(ManifestSamples):
    """The same, with latents from a cache: nothing is decoded or encoded any more."""

    def __init__(self, recipe: Recipe, sight: Sight, manifest: Path, captions: bool, cache: Path):
        super().__init__(recipe, sight, manifest, captions)
        self.cache = LatentCache(cache)
        data = recipe.data
        self.cache.require(self.triplets, data.num_frames, data.height, data.width)

    def sides(self, number: int, rng: np.random.Generator) -> tuple[Any, str, str]:
        """See `_Samples`; a still is the first latent frame, which the causal VAE encodes alone."""
        triplet = self.triplet(number)
        count = 1 if self.frames_of(number) == 1 else None
        sides = []
        for cached in self.cache.read(triplet.key):
            seen = cached.seen if count is None else cached.seen[:1]
            sides.append((None, cached.latents[:, :count].float(), seen))
        return sides, triplet.instruction, triplet.target_caption or ""


def editor_samples(recipe: Recipe, sight: Sight) -> _Samples:
    """The samples that a recipe asks for."""
    data = recipe.data
    if data.source == "playground":
        return PlaygroundSamples(recipe, sight)
    if not data.manifest:
        raise UserError("data.manifest is not set: give the manifest that `rvedit prepare` wrote")
    manifest, captions = Path(data.manifest), bool(recipe.alignment.weight)
    if data.cache:
        return CachedSamples(recipe, sight, manifest, captions, Path(data.cache))
    return ManifestSamples(recipe, sight, manifest, captions)


def collate(samples: list[Sample]) -> TripletBatch:
    """Samples of one shape -> a minibatch."""
    editing, reference = (
        _premise([getattr(sample, side) for sample in samples]) for side in ("source", "target")
    )
    return TripletBatch(editing, reference, [sample.number for sample in samples])


def _premise(sides: list[Side]) -> Premise:
    clips, latents = (
        torch.stack(tensors) if tensors else None
        for tensors in (
            [side.clip for side in sides if side.clip is not None],
            [side.latents for side in sides if side.latents is not None],
        )
    )
    return Premise(clips, [s.seen for s in sides], [s.text for s in sides], latents)


def load(
    samples: Dataset[Item], numbers: Iterable[list[int]], workers: int, collate_fn: Any
) -> Iterator[Any]:
    """Minibatches of the listed sample numbers, prepared ahead by worker processes."""
    loader: DataLoader[Item] = DataLoader(
        samples,
        batch_sampler=numbers,
        num_workers=workers,
        collate_fn=collate_fn,
        worker_init_fn=_obey_signals,
        prefetch_factor=4 if workers else None,
    )
    return iter(loader)


def _obey_signals(worker: int) -> None:
    """The training process minds Ctrl-C for its workers, and ends them."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

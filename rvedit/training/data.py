"""The triplets of a run as minibatches: rendered, read from a manifest's clips, or taken from a cache.

Whatever the source, sample number n of a run is a function of n and the recipe alone.
"""

from __future__ import annotations

import signal
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rvedit.io.clips import fitting_bucket, read_pair
from rvedit.io.errors import UserError
from rvedit.io.frames import Frames, to_model_range
from rvedit.io.latent_cache import LatentCache, TextCache, fingerprint, texts_of
from rvedit.io.manifest import read_manifest
from rvedit.io.records import ClipShape, Triplet
from rvedit.models.edit_tokens import MLLMFrameProcessor
from rvedit.models.text_tokens import pad_texts
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline
from rvedit.playground.world import render, sample_triplet
from rvedit.training.buckets import BucketSchedule, is_still
from rvedit.training.recipe import DataRecipe, Recipe
from rvedit.training.step import BranchInputs, TripletBatch

Item = TypeVar("Item")


@dataclass(frozen=True)
class Side:
    """One clip of a triplet: pixels or latents, what the multimodal LLM sees of it, and the words."""

    clip: Tensor | None
    latents: Tensor | None
    seen: Frames
    text: str
    text_states: Tensor | None = None


@dataclass(frozen=True)
class Sample:
    """A triplet, and its number in the run."""

    number: int
    source: Side
    target: Side


class _Samples(Dataset[Sample]):
    """Sample n: a triplet as pixels, some without their words."""

    def __init__(self, recipe: Recipe, frame_processor: MLLMFrameProcessor):
        self.recipe = recipe
        self.data = recipe.data
        self.frame_processor = frame_processor
        self.order = BucketSchedule(recipe.data.seed, self.weights())

    def weights(self) -> Sequence[float]:
        """How often each bucket's turn comes, relative to the others."""
        return self.data.shares

    def __getitem__(self, number: int) -> Sample:
        rng = np.random.default_rng([self.data.seed, number, 2])
        sides, instruction, caption = self.sides(number, rng)
        # Both are drawn whatever the shares, so that a change of one leaves the rest of the data as it is.
        drops = rng.random(2)
        texts = (
            "" if drops[0] < self.data.instruction_dropout else instruction,
            "" if drops[1] < self.data.caption_dropout else caption,
        )
        source, target = (
            Side(*side, text, self.text_states(text)) for side, text in zip(sides, texts, strict=True)
        )
        return Sample(number, source, target)

    def sides(
        self, number: int, rng: np.random.Generator
    ) -> tuple[Sequence[tuple[Tensor | None, Tensor | None, Frames]], str, str]:
        """(pixels, latents, frames seen) of source and target, the instruction and the caption."""
        raise NotImplementedError

    @property
    def has_text_embeds(self) -> bool:
        """Whether they bring the states of the text encoder along."""
        return False

    def text_states(self, text: str) -> Tensor | None:
        """The text encoder's, where they are known already."""
        return None

    def place(self, number: int) -> tuple[int, int]:
        """A sample's bucket, and its number among all that are drawn from that bucket."""
        step, position = divmod(number, self.recipe.batch_size)
        bucket, turn = self.order[step]
        return bucket, turn * self.recipe.batch_size + position

    def shape(self, number: int) -> ClipShape:
        """What a sample is read as; its whole batch is of stills or of clips."""
        shape = self.data.shapes[self.place(number)[0]]
        return shape.still if is_still(self.data, number // self.recipe.batch_size) else shape

    def as_pixels(self, clips: Iterable[Frames]) -> list[tuple[Tensor, None, Frames]]:
        """The sides of two clips."""
        return [(to_model_range(clip), None, self.frame_processor(clip)) for clip in clips]


class PlaygroundSamples(_Samples):
    """Triplets rendered on the spot."""

    def sides(self, number: int, rng: np.random.Generator) -> tuple[Any, str, str]:
        """See `_Samples`."""
        data = self.data
        triplet = sample_triplet(
            data.seed, number % data.count, operations=data.operations, new_things=data.new_things
        )
        start = int(rng.integers(24))
        scenes = (triplet.source, triplet.target)
        shape = self.shape(number)
        clips = [render(s, shape.num_frames, shape.height, shape.width, start) for s in scenes]
        return self.as_pixels(clips), triplet.instruction, triplet.target_caption


class ManifestSamples(_Samples):
    """The triplets of a manifest, in an order drawn anew for each epoch."""

    def __init__(
        self,
        recipe: Recipe,
        frame_processor: MLLMFrameProcessor,
        manifest: Path,
        captions: bool,
        without: Collection[str] = (),
    ):
        self.manifest = manifest
        self.triplets = [triplet for triplet in read_manifest(manifest) if triplet.key not in without]
        self.buckets = _sort_into_buckets(manifest, self.triplets, recipe.data)
        self.orders: dict[int, tuple[int, NDArray[np.int64]]] = {}
        super().__init__(recipe, frame_processor)
        missing = sum(t.target_caption is None for t in self.triplets)
        if captions and missing:
            raise UserError(
                f"{manifest}: {missing} of {len(self.triplets)} rows have no target_caption, which alignment "
                "reads: write them with `rvedit caption`, or switch it off with --set alignment.weight=0"
            )

    def weights(self) -> Sequence[float]:
        """By the triplets in each bucket, so that all are seen equally often where the shares are equal."""
        return [share * len(rows) for share, rows in zip(self.data.shares, self.buckets, strict=True)]

    def triplet(self, number: int) -> Triplet:
        """The row of a sample number."""
        bucket, drawn = self.place(number)
        rows = self.buckets[bucket]
        epoch, index = divmod(drawn, len(rows))
        if self.orders.get(bucket, (-1,))[0] != epoch:  # drawn once an epoch, not once a sample
            rng = np.random.default_rng([self.data.seed, epoch, 3, bucket])
            self.orders[bucket] = (epoch, rng.permutation(len(rows)))
        return rows[self.orders[bucket][1][index]]

    def sides(self, number: int, rng: np.random.Generator) -> tuple[Any, str, str]:
        """See `_Samples`."""
        triplet = self.triplet(number)
        clips = read_pair(self.manifest, triplet, self.shape(number))
        return self.as_pixels(clips), triplet.instruction, triplet.target_caption or ""


class CachedSamples(ManifestSamples):
    """The same, with latents from a cache: nothing is decoded or encoded any more."""

    def __init__(
        self,
        recipe: Recipe,
        frame_processor: MLLMFrameProcessor,
        manifest: Path,
        captions: bool,
        cache: LatentCache,
        vae: str,
    ):
        if frame_processor.whole_stills and recipe.data.still_share:
            raise UserError(
                "data.still_share: the cache holds what this model sees of clips, which is less than it sees "
                "of stills: give those a bucket of their own, num_frames: 1"
            )
        failed = cache.failed
        if failed:
            warnings.warn(f"{len(failed)} triplets that could not be cached are left out", stacklevel=2)
        super().__init__(recipe, frame_processor, manifest, captions, without=failed)
        self.cache = cache
        self.texts: TextCache | None = None
        self.cache.require(self.triplets, recipe.data.shapes, vae)

    def read_texts(self, texts: TextCache, encoder: str) -> None:
        """Take the states of a frozen text encoder from a cache, too."""
        texts.require(texts_of(self.triplets), encoder)
        self.texts = texts

    @property
    def has_text_embeds(self) -> bool:
        """See `_Samples`."""
        return self.texts is not None

    def text_states(self, text: str) -> Tensor | None:
        """See `_Samples`."""
        return self.texts.read(text).float() if self.texts else None

    def sides(self, number: int, rng: np.random.Generator) -> tuple[Any, str, str]:
        """See `_Samples`; a still is the first latent frame, which the causal VAE encodes alone."""
        triplet = self.triplet(number)
        count = 1 if self.shape(number).num_frames == 1 else None
        sides = []
        for cached in self.cache.read(triplet.key):
            seen = cached.seen if count is None else cached.seen[:1]
            sides.append((None, cached.latents[:, :count].float(), seen))
        return sides, triplet.instruction, triplet.target_caption or ""


def _sort_into_buckets(manifest: Path, triplets: list[Triplet], data: DataRecipe) -> list[list[Triplet]]:
    """The triplets of each bucket."""
    shapes = data.shapes
    buckets: list[list[Triplet]] = [[] for _ in shapes]
    for triplet in triplets:
        index = fitting_bucket(shapes, triplet)
        if index is None:
            raise UserError(
                f"{manifest}: {triplet.key} has {triplet.num_frames} frames, fewer than any of data.buckets: "
                "add a shorter bucket, or prepare the data with a higher --min-frames"
            )
        buckets[index].append(triplet)
    return buckets


def editor_samples(recipe: Recipe, models: RVEDiTPipeline) -> _Samples:
    """The samples that a recipe asks for, as the models read them."""
    frame_processor = models.edit_token_encoder.frame_processor
    data = recipe.data
    if data.source == "playground":
        return PlaygroundSamples(recipe, frame_processor)
    if not data.manifest:
        raise UserError("data.manifest is not set: give the manifest that `rvedit prepare` wrote")
    manifest, captions = Path(data.manifest), bool(recipe.alignment.weight)
    if data.cache:
        folder = Path(data.cache)
        vae = fingerprint(models.vae.named_parameters())
        samples = CachedSamples(recipe, frame_processor, manifest, captions, LatentCache(folder), vae)
        encoder = models.text_encoder
        if encoder is None or not TextCache.is_in(folder):
            return samples
        if not any(p.requires_grad for p in encoder.parameters()):
            samples.read_texts(TextCache(folder), fingerprint(encoder.named_parameters()))
        return samples
    return ManifestSamples(recipe, frame_processor, manifest, captions)


def collate(samples: list[Sample], text_length: int) -> TripletBatch:
    """Samples of one shape -> a minibatch."""
    editing, reference = (
        _premise([getattr(sample, side) for sample in samples], text_length) for side in ("source", "target")
    )
    return TripletBatch(editing, reference, [sample.number for sample in samples])


def _premise(sides: list[Side], length: int) -> BranchInputs:
    clips, latents = (
        torch.stack(tensors) if tensors else None
        for tensors in (
            [side.clip for side in sides if side.clip is not None],
            [side.latents for side in sides if side.latents is not None],
        )
    )
    states = [side.text_states for side in sides if side.text_states is not None]
    texts = pad_texts(states, length) if states else None
    return BranchInputs(clips, [s.seen for s in sides], [s.text for s in sides], latents, texts)


def build_dataloader(
    samples: Dataset[Item], numbers: Iterable[list[int]], workers: int, collate_fn: Any
) -> Iterator[Any]:
    """Minibatches of the listed sample numbers, prepared ahead by worker processes."""
    loader: DataLoader[Any] = DataLoader(
        samples,
        batch_sampler=numbers,
        num_workers=workers,
        collate_fn=collate_fn,
        worker_init_fn=_obey_signals,
        prefetch_factor=4 if workers else None,
    )
    return _plainly(iter(loader))


def _plainly(batches: Iterator[Any]) -> Iterator[Any]:
    """With a worker's UserError as it was: the loader would give it a traceback for its words."""
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except UserError as error:
            raise UserError(str(error).strip().rpartition("UserError: ")[2]) from None
        yield batch


def _obey_signals(worker: int) -> None:
    """The training process minds the signals for its workers, and ends them.

    Schedulers send SIGTERM to all processes of a job: a worker that obeyed would take the run down with it,
    before its checkpoint is written.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)

"""Datasets and dataloader: triplets that are rendered, read from a manifest's clips, or from a cache.

For every source, sample number n of a run is a function of n and the recipe alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import Dataset

from rvedit.io.clips import UnreadableClip, fitting_bucket, read_pair
from rvedit.io.errors import UserError
from rvedit.io.frames import Frames, to_model_range
from rvedit.io.latent_cache import LatentCache, TextCache, fingerprint, texts_of
from rvedit.io.manifest import read_manifest
from rvedit.io.records import ClipShape, Triplet
from rvedit.models.mllm_frames import MLLMFrameProcessor
from rvedit.models.text_tokens import pad_text_states
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline
from rvedit.playground.degrade import degrade
from rvedit.playground.world import render, sample_triplet
from rvedit.training.buckets import BucketSchedule, is_still
from rvedit.training.limits import too_many_unreadable
from rvedit.training.recipe import DataRecipe, Recipe
from rvedit.training.step import BranchInputs, TripletBatch


@dataclass(frozen=True)
class BranchSample:
    """A clip of a triplet, its frames for the multimodal LLM, and its text; see `BranchInputs`."""

    clip: Tensor | None
    latents: Tensor | None
    frames: Frames
    text: str
    text_states: Tensor | None = None


@dataclass(frozen=True)
class Sample:
    """A triplet and its number in the run."""

    number: int
    source: BranchSample
    target: BranchSample
    unreadable: Mapping[str, str]
    """See `LoadedTriplet`."""


@dataclass(frozen=True)
class LoadedTriplet:
    """The clips of source and target, and the texts of a triplet."""

    clips: Sequence[tuple[Tensor | None, Tensor | None, Frames]]
    """Pixels, latents and frames for the multimodal LLM."""
    instruction: str
    caption: str
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Reasons why clips that it stands in for could not be read, by path."""


class _Samples(Dataset[Sample]):
    """The samples of a run; instruction and caption are dropped at random."""

    def __init__(self, recipe: Recipe, frame_processor: MLLMFrameProcessor):
        self.recipe = recipe
        self.data = recipe.data
        self.frame_processor = frame_processor
        self.order = BucketSchedule(recipe.data.seed, self.weights())

    def weights(self) -> Sequence[float]:
        """Return the weight of each bucket in the order of batches."""
        return self.data.shares

    def __getitem__(self, number: int) -> Sample:
        rng = np.random.default_rng([self.data.seed, number, 2])
        triplet = self.load(number, rng)
        # Both are always drawn, so that changing one dropout rate leaves the other's choices as they are.
        drops = rng.random(2)
        texts = (
            "" if drops[0] < self.data.instruction_dropout else triplet.instruction,
            "" if drops[1] < self.data.caption_dropout else triplet.caption,
        )
        source, target = (
            BranchSample(*clip, text, self.text_states(text))
            for clip, text in zip(triplet.clips, texts, strict=True)
        )
        return Sample(number, source, target, triplet.unreadable)

    def load(self, number: int, rng: np.random.Generator) -> LoadedTriplet:
        """Return the triplet of a sample number."""
        raise NotImplementedError

    @property
    def has_text_embeds(self) -> bool:
        """Return whether the samples include states of the text encoder."""
        return False

    def text_states(self, text: str) -> Tensor | None:
        """Return the text encoder's states if they are cached."""
        return None

    def position(self, number: int) -> tuple[int, int]:
        """Return a sample's bucket, and its number among the samples from that bucket."""
        step, index = divmod(number, self.recipe.batch_size)
        bucket, batches = self.order[step]
        return bucket, batches * self.recipe.batch_size + index

    def shape(self, number: int) -> ClipShape:
        """Return a sample's shape; all samples of a batch are stills, or none."""
        shape = self.data.shapes[self.position(number)[0]]
        return shape.still if is_still(self.data, number // self.recipe.batch_size) else shape

    def as_pixels(self, clips: Iterable[Frames]) -> list[tuple[Tensor, None, Frames]]:
        """Return clips in the form of `LoadedTriplet`."""
        return [(to_model_range(clip), None, self.frame_processor(clip)) for clip in clips]


def sample_realism(data: DataRecipe, number: int) -> tuple[float, np.random.Generator]:
    """Return the realism of a playground sample, and the generator of its noise and compression."""
    rng = np.random.default_rng([data.seed, number, 4])
    return rng.uniform(0, data.realism), rng


class PlaygroundSamples(_Samples):
    """Triplets of the playground, rendered on access."""

    def load(self, number: int, rng: np.random.Generator) -> LoadedTriplet:
        """See `_Samples`."""
        data = self.data
        realism, degradation = sample_realism(data, number)
        triplet = sample_triplet(
            data.seed, number % data.count, "train", data.operations, data.new_things, realism, data.synonyms
        )
        start = int(rng.integers(24))
        scenes = (triplet.source, triplet.target)
        shape = self.shape(number)
        source, target = (render(s, shape.num_frames, shape.height, shape.width, start) for s in scenes)
        clips = (degrade(source, degradation, data.degrade), target)
        return LoadedTriplet(self.as_pixels(clips), triplet.instruction, triplet.target_caption)


class ManifestSamples(_Samples):
    """Triplets of a manifest, shuffled in each epoch."""

    def __init__(
        self,
        recipe: Recipe,
        frame_processor: MLLMFrameProcessor,
        manifest: Path,
        captions: bool,
        excluded: Collection[str] = (),
    ):
        self.manifest = manifest
        self.triplets = [triplet for triplet in read_manifest(manifest) if triplet.key not in excluded]
        self.buckets = _sort_into_buckets(manifest, self.triplets, recipe.data)
        self.orders: dict[int, tuple[int, NDArray[np.int64]]] = {}
        super().__init__(recipe, frame_processor)
        missing = sum(t.target_caption is None for t in self.triplets)
        if captions and missing:
            raise UserError(
                f"{manifest}: {missing} of {len(self.triplets)} rows have no target_caption, which alignment "
                "needs: write captions with `rvedit caption`, or set alignment.weight: 0"
            )

    def weights(self) -> Sequence[float]:
        """Weight buckets by their triplets too: with equal shares, all triplets are sampled equally often."""
        return [share * len(rows) for share, rows in zip(self.data.shares, self.buckets, strict=True)]

    def triplet(self, number: int, offset: int = 0) -> Triplet:
        """Return the manifest row of a sample number, or the one `offset` samples later in its epoch."""
        bucket, position = self.position(number)
        rows = self.buckets[bucket]
        epoch, index = divmod(position, len(rows))
        if self.orders.get(bucket, (-1,))[0] != epoch:  # permute once per epoch, not once per sample
            rng = np.random.default_rng([self.data.seed, epoch, 3, bucket])
            self.orders[bucket] = (epoch, rng.permutation(len(rows)))
        return rows[self.orders[bucket][1][(index + offset) % len(rows)]]

    def load(self, number: int, rng: np.random.Generator) -> LoadedTriplet:
        """See `_Samples`; the next readable triplet of the epoch stands in for one that cannot be read.

        Raises UserError if more triplets than allowed, and one more, cannot be read: with one more, the
        training loop can stop all processes at the same step.
        """
        unreadable: dict[str, str] = {}
        for offset in range(self.data.max_unreadable + 2):
            triplet = self.triplet(number, offset)
            try:
                clips = self.read_clips(triplet, self.shape(number))
            except UnreadableClip as error:
                unreadable[str(error.path)] = str(error)
                continue
            return LoadedTriplet(clips, triplet.instruction, triplet.target_caption or "", unreadable)
        raise too_many_unreadable(self.manifest, unreadable, [*unreadable.values()][-1])

    def read_clips(
        self, triplet: Triplet, shape: ClipShape
    ) -> Sequence[tuple[Tensor | None, Tensor | None, Frames]]:
        """Return the clips of a triplet in the form of `LoadedTriplet`. Raises UnreadableClip."""
        return self.as_pixels(read_pair(self.manifest, triplet, shape))


class CachedSamples(ManifestSamples):
    """Triplets of a manifest with cached latents, so that no video is decoded and no VAE is run."""

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
                "data.still_share: this model needs stills in more detail than the cache has of clips: set "
                "data.still_share: 0 and add a bucket of num_frames: 1"
            )
        failed = cache.failed
        if failed:
            warnings.warn(f"{len(failed)} triplets are skipped, as they could not be cached", stacklevel=2)
        super().__init__(recipe, frame_processor, manifest, captions, excluded=failed)
        self.cache = cache
        self.texts: TextCache | None = None
        self.cache.require(self.triplets, recipe.data.shapes, vae)

    def read_texts(self, texts: TextCache, encoder: str) -> None:
        """Use cached states of a frozen text encoder."""
        texts.require(texts_of(self.triplets), encoder)
        self.texts = texts

    @property
    def has_text_embeds(self) -> bool:
        """See `_Samples`."""
        return self.texts is not None

    def text_states(self, text: str) -> Tensor | None:
        """See `_Samples`."""
        return self.texts.read(text).float() if self.texts else None

    def read_clips(
        self, triplet: Triplet, shape: ClipShape
    ) -> Sequence[tuple[Tensor | None, Tensor | None, Frames]]:
        """See `ManifestSamples`; a still is the first latent frame, which the causal VAE encodes alone."""
        count = 1 if shape.num_frames == 1 else None
        try:
            clips = self.cache.read(triplet.key)
        except (OSError, SafetensorError) as error:
            shard = self.cache.path_of[triplet.key]
            reason = f"{shard}: cannot be read ({error}): delete it, and run `rvedit prepare cache` again"
            raise UnreadableClip(reason, shard) from None
        return [(None, clip.latents[:, :count].float(), clip.mllm_frames[:count]) for clip in clips]


def _sort_into_buckets(manifest: Path, triplets: list[Triplet], data: DataRecipe) -> list[list[Triplet]]:
    """Return the triplets of each bucket."""
    shapes = data.shapes
    buckets: list[list[Triplet]] = [[] for _ in shapes]
    for triplet in triplets:
        index = fitting_bucket(shapes, triplet)
        if index is None:
            raise UserError(
                f"{manifest}: {triplet.key} has {triplet.num_frames} frames, fewer than every shape of the "
                "recipe: add a shorter one to data.buckets, or prepare the data with a higher `min_frames`"
            )
        buckets[index].append(triplet)
    return buckets


def editor_samples(recipe: Recipe, models: RVEDiTPipeline) -> _Samples:
    """Return the dataset of a recipe, in the form that the models need."""
    frame_processor = models.edit_token_encoder.frame_processor
    data = recipe.data
    if data.source == "playground":
        return PlaygroundSamples(recipe, frame_processor)
    if not data.manifest:
        raise UserError("data.manifest is not set: give the manifest that `rvedit prepare` wrote")
    manifest, captions = Path(data.manifest), recipe.alignment.enabled
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
    """Return the minibatch of samples of one shape."""
    editing, reference = (
        _branch_inputs([getattr(sample, clip) for sample in samples], text_length)
        for clip in ("source", "target")
    )
    unreadable = {path: reason for sample in samples for path, reason in sample.unreadable.items()}
    return TripletBatch(editing, reference, [sample.number for sample in samples], unreadable)


def _branch_inputs(samples: list[BranchSample], text_length: int) -> BranchInputs:
    clips, latents = (
        torch.stack(tensors) if tensors else None
        for tensors in (
            [sample.clip for sample in samples if sample.clip is not None],
            [sample.latents for sample in samples if sample.latents is not None],
        )
    )
    states = [sample.text_states for sample in samples if sample.text_states is not None]
    padded = pad_text_states(states, text_length) if states else None
    return BranchInputs(clips, [s.frames for s in samples], [s.text for s in samples], latents, padded)

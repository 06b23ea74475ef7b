"""Datasets of triplets that are rendered, read from a manifest's clips, or from a cache."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from rvedit.io.clips import UnreadableClip, fitting_bucket, read_mask, read_pair, read_reference_image
from rvedit.io.errors import UserError
from rvedit.io.frames import Frames, Picture
from rvedit.io.latent_cache import LatentCache, TextCache, fingerprint, texts_of
from rvedit.io.manifest import rank, read_manifest
from rvedit.io.records import ClipShape, Triplet
from rvedit.models.autoencoder import latent_mask
from rvedit.models.mllm_frames import MLLMFrameProcessor
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline
from rvedit.playground.degrade import degrade
from rvedit.playground.world import render, sample_triplet
from rvedit.training.buckets import drops_pictures, has_pictures
from rvedit.training.limits import too_many_unreadable
from rvedit.training.recipe import Recipe
from rvedit.training.recipe_sections import DataRecipe
from rvedit.training.samples import LoadedTriplet, Samples


def sample_realism(data: DataRecipe, number: int) -> tuple[float, np.random.Generator]:
    """Return the realism of a playground sample, and the generator of its noise and compression."""
    rng = np.random.default_rng([data.seed, number, 4])
    realism = rng.uniform(0, data.realism)
    is_flat = np.random.default_rng([data.seed, number, 8]).random() < data.flat_share
    return 0.0 if is_flat else realism, rng


class PlaygroundSamples(Samples):
    """Triplets of the playground, rendered on access."""

    def has_picture(self, number: int) -> bool:
        """See `Samples`."""
        step = number // self.recipe.batch_size
        return has_pictures(self.data, step) and not drops_pictures(self.data, step)

    def load(self, number: int, rng: np.random.Generator) -> LoadedTriplet:
        """See `Samples`."""
        data = self.data
        realism, degradation = sample_realism(data, number)
        with_picture = has_pictures(data, number // self.recipe.batch_size)
        triplet = sample_triplet(
            data.seed,
            number % data.count,
            "test" if self.held_out else "train",
            data.operations,
            data.new_things,
            realism,
            data.synonyms,
            with_picture,
        )
        start = int(rng.integers(24))
        scenes = (triplet.source, triplet.target)
        shape = self.shape(number)
        source, target = (render(s, shape.num_frames, shape.height, shape.width, start) for s in scenes)
        clips = (degrade(source, degradation, data.degrade), target)
        picture = None
        if self.has_picture(number):
            assert triplet.picture is not None
            picture = render(triplet.picture, 1, shape.height, shape.width, start)[0]
        pixels = self.as_pixels(clips, picture is not None)
        return LoadedTriplet(pixels, triplet.instruction, triplet.target_caption, picture=picture)


def split_held_out(triplets: Sequence[Triplet], count: int) -> tuple[list[Triplet], list[Triplet]]:
    """Return the triplets to train on, and `count` others, drawn at random but always alike."""
    lowest = sorted(triplets, key=lambda triplet: rank(0, triplet.key))[:count]
    held_out = {triplet.key for triplet in lowest}
    return [t for t in triplets if t.key not in held_out], [t for t in triplets if t.key in held_out]


class ManifestSamples(Samples):
    """Triplets of a manifest, shuffled in each epoch; those held out in the manifest's order."""

    def __init__(
        self,
        recipe: Recipe,
        frame_processor: MLLMFrameProcessor,
        manifest: Path,
        captions: bool,
        reads_pictures: bool,
        latent_scale: int,
        held_out: bool = False,
        excluded: Collection[str] = (),
    ):
        self.manifest = manifest
        self.latent_scale = latent_scale
        readable = [triplet for triplet in read_manifest(manifest) if triplet.key not in excluded]
        parts = split_held_out(readable, recipe.validation.held_out)
        self.triplets = parts[held_out]
        if not parts[0]:
            raise UserError(
                f"validation.held_out is {recipe.validation.held_out}: {manifest} has {len(readable)} rows"
            )
        self.reads_pictures = reads_pictures
        pictures = [triplet for triplet in self.triplets if triplet.reference_image]
        if pictures and not reads_pictures:
            warnings.warn(
                f"{manifest}: {len(pictures)} of {len(self.triplets)} rows have reference images, which are "
                "not used: set model.reference_images: true",
                stacklevel=2,
            )
            pictures = []
        with_one = {triplet.key for triplet in pictures}
        others = [triplet for triplet in self.triplets if triplet.key not in with_one]
        self.buckets = _sort_into_buckets(manifest, others, recipe.data)
        if pictures:
            self.buckets += _sort_into_buckets(manifest, pictures, recipe.data)
        self.orders: dict[int, tuple[int, NDArray[np.int64]]] = {}
        super().__init__(recipe, frame_processor, held_out)
        missing = sum(t.target_caption is None for t in self.triplets)
        if captions and missing:
            raise UserError(
                f"{manifest}: {missing} of {len(self.triplets)} rows have no target_caption, which alignment "
                "needs: write captions with `rvedit caption`, or set alignment.weight: 0"
            )

    def weights(self) -> Sequence[float]:
        """Weight buckets by their triplets too: with equal shares, all triplets are sampled equally often."""
        return [share * len(rows) for share, rows in zip(cycle(self.data.shares), self.buckets)]

    def triplet(self, number: int, offset: int = 0) -> Triplet:
        """Return the manifest row of a sample number, or the one `offset` samples later in its epoch."""
        if self.held_out:
            return self.triplets[(number + offset) % len(self.triplets)]
        bucket, position = self.position(number)
        rows = self.buckets[bucket]
        epoch, index = divmod(position, len(rows))
        if self.orders.get(bucket, (-1,))[0] != epoch:  # permute once per epoch, not once per sample
            rng = np.random.default_rng([self.data.seed, epoch, 3, bucket])
            self.orders[bucket] = (epoch, rng.permutation(len(rows)))
        return rows[self.orders[bucket][1][(index + offset) % len(rows)]]

    def load(self, number: int, rng: np.random.Generator) -> LoadedTriplet:
        """See `Samples`; the next readable triplet of the epoch stands in for one that cannot be read.

        Raises UserError if more triplets than allowed, and one more, cannot be read: with one more, the
        training loop can stop all processes at the same step.
        """
        unreadable: dict[str, str] = {}
        for offset in range(self.data.max_unreadable + 2):
            triplet = self.triplet(number, offset)
            try:
                with_picture = self.has_picture(number)
                clips = self.read_clips(triplet, self.shape(number), with_picture)
                picture = self.read_picture(triplet) if with_picture else None
                mask = self.read_mask(triplet, self.shape(number))
            except UnreadableClip as error:
                unreadable[str(error.path)] = str(error)
                continue
            caption = triplet.target_caption or ""
            return LoadedTriplet(clips, triplet.instruction, caption, unreadable, picture, mask)
        raise too_many_unreadable(self.manifest, unreadable, [*unreadable.values()][-1])

    def read_clips(
        self, triplet: Triplet, shape: ClipShape, has_picture: bool
    ) -> Sequence[tuple[Tensor | None, Tensor | None, Frames]]:
        """Return the clips of a triplet in the form of `LoadedTriplet`. Raises UnreadableClip."""
        return self.as_pixels(read_pair(self.manifest, triplet, shape), has_picture)

    def read_mask(self, triplet: Triplet, shape: ClipShape) -> Tensor | None:
        """Return a triplet's mask at the size of its latents, if it has one that is used.

        Masks are read from their files, also with a cache. Raises UnreadableClip.
        """
        if triplet.mask is None or self.data.mask_weight == 1:
            return None
        rows, columns = shape.height // self.latent_scale, shape.width // self.latent_scale
        return latent_mask(np.array(read_mask(self.manifest, triplet, shape)), rows, columns)

    def shape(self, number: int) -> ClipShape:
        """See `Samples`."""
        if not self.held_out:
            return super().shape(number)
        index = fitting_bucket(self.data.shapes, self.triplet(number))
        assert index is not None  # checked for all triplets
        return self.data.shapes[index]

    def has_picture(self, number: int) -> bool:
        """See `Samples`."""
        if self.held_out:
            return self.reads_pictures and self.triplet(number).reference_image is not None
        return super().has_picture(number)

    def read_picture(self, triplet: Triplet) -> Picture:
        """Return a triplet's reference image. Raises UnreadableClip."""
        return read_reference_image(self.manifest, triplet)


class CachedSamples(ManifestSamples):
    """Triplets of a manifest with cached latents, so that no video is decoded and no VAE is run."""

    def __init__(
        self,
        recipe: Recipe,
        frame_processor: MLLMFrameProcessor,
        manifest: Path,
        captions: bool,
        reads_pictures: bool,
        latent_scale: int,
        held_out: bool,
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
        super().__init__(
            recipe, frame_processor, manifest, captions, reads_pictures, latent_scale, held_out, failed
        )
        self.cache = cache
        self.texts: TextCache | None = None
        self.cache.require(self.triplets, recipe.data.shapes, vae)

    def read_texts(self, texts: TextCache, encoder: str) -> None:
        """Use cached states of a frozen text encoder."""
        texts.require(texts_of(self.triplets), encoder)
        self.texts = texts

    @property
    def has_text_embeds(self) -> bool:
        """See `Samples`."""
        return self.texts is not None

    def text_states(self, text: str) -> Tensor | None:
        """See `Samples`."""
        return self.texts.read(text).float() if self.texts else None

    def read_clips(
        self, triplet: Triplet, shape: ClipShape, has_picture: bool
    ) -> Sequence[tuple[Tensor | None, Tensor | None, Frames]]:
        """See `ManifestSamples`; a still is the first latent frame, which the causal VAE encodes alone."""
        count = 1 if shape.num_frames == 1 else None
        with self._unreadable_shards(triplet):
            clips = self.cache.read(triplet.key)
        return [(None, clip.latents[:, :count].float(), clip.mllm_frames[:count]) for clip in clips]

    def read_picture(self, triplet: Triplet) -> Picture:
        """See `ManifestSamples`."""
        with self._unreadable_shards(triplet):
            return self.cache.read_picture(triplet.key)

    @contextmanager
    def _unreadable_shards(self, triplet: Triplet) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            shard = self.cache.path_of[triplet.key]
            reason = f"{shard}: cannot be read ({error}): delete it, and run `rvedit prepare cache` again"
            raise UnreadableClip(reason, shard) from None


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


def held_out_samples(recipe: Recipe, models: RVEDiTPipeline) -> tuple[Samples, int]:
    """Return the held-out dataset of a recipe, without dropout, and its size."""
    dropouts = ("instruction_dropout", "caption_dropout", "reference_dropout", "still_share")
    data = recipe.data.model_copy(update=dict.fromkeys(dropouts, 0.0))
    samples = editor_samples(recipe.model_copy(update={"data": data}), models, held_out=True)
    return samples, recipe.validation.held_out or recipe.validation.count


def editor_samples(recipe: Recipe, models: RVEDiTPipeline, held_out: bool = False) -> Samples:
    """Return the dataset of a recipe, or its held-out part, in the form that the models need."""
    frame_processor = models.edit_token_encoder.frame_processor
    data = recipe.data
    reads_pictures = models.reads_reference_images
    if data.source == "playground":
        if data.reference_share and not reads_pictures:
            raise UserError("data.reference_share: this model reads none: set model.reference_images: true")
        return PlaygroundSamples(recipe, frame_processor, held_out)
    if not data.manifest:
        raise UserError("data.manifest is not set: give the manifest that `rvedit prepare` wrote")
    manifest, captions = Path(data.manifest), recipe.alignment.enabled
    scale: int = models.vae.config.scale_factor_spatial
    if data.cache:
        folder = Path(data.cache)
        vae = fingerprint(models.vae.named_parameters())
        cache = LatentCache(folder)
        samples = CachedSamples(
            recipe, frame_processor, manifest, captions, reads_pictures, scale, held_out, cache, vae
        )
        encoder = models.text_encoder
        if encoder is None or not TextCache.is_in(folder):
            return samples
        if not any(p.requires_grad for p in encoder.parameters()):
            samples.read_texts(TextCache(folder), fingerprint(encoder.named_parameters()))
        return samples
    return ManifestSamples(recipe, frame_processor, manifest, captions, reads_pictures, scale, held_out)

"""Encoders of the groups of a cache: clips to latents, texts to the text encoder's states."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKLWan

from rvedit.io.clips import fitting_bucket, read_pair, read_reference_image
from rvedit.io.errors import UserError
from rvedit.io.frames import Frames, Picture, to_model_range
from rvedit.io.latent_cache import (
    CachedClip,
    CacheSettings,
    Entry,
    LatentCache,
    TextCache,
    TextSettings,
    as_entry,
    fingerprint,
    text_key,
    texts_of,
)
from rvedit.io.manifest import Failure
from rvedit.io.pool import map_ahead
from rvedit.io.records import ClipShape, Triplet
from rvedit.io.shards import Shard
from rvedit.models.autoencoder import encode
from rvedit.models.mllm_frames import MLLMFrameProcessor
from rvedit.models.reference_images import shrink_to_fit
from rvedit.models.text_tokens import encode_text, trim_padding
from rvedit.pipelines.checkpoints import add_text_encoder, find_checkpoint, load_checkpoint
from rvedit.pipelines.clip_shapes import check_shapes

SHARD = 32
"""Triplets per shard: the most that an interruption can lose."""
TEXT_SHARD = 128
TEXT_BATCH = 16
Row = tuple[int, Triplet]
"""Number of a manifest's row, from 1, and its triplet."""


@dataclass(frozen=True)
class CacheConfig:
    """Clips and texts to encode, and the model to encode them with."""

    manifest: Path
    folder: Path
    model: str = "nano"
    """Checkpoint with the VAE, the text encoder and the multimodal LLM's frame processor."""
    shapes: tuple[ClipShape, ...] = (ClipShape(81, 704, 1280),)
    """Buckets; each triplet is encoded in the one that fits it."""
    texts: bool = True
    """Also encode instructions and captions, for training with a frozen text encoder."""
    workers: int = 2
    """Processes that decode clips ahead; 0: clips are decoded between encodes."""
    shard: Shard = (0, 1)


@dataclass(frozen=True)
class CacheProgress:
    """Counts of encoded "triplets" or "texts" (`kind`) of this process's share."""

    kind: str
    done: int
    failed: int
    total: int


@dataclass(frozen=True)
class CacheModels:
    """The parts of a checkpoint that encode."""

    vae: AutoencoderKLWan
    frame_processor: MLLMFrameProcessor
    text_encoder: Any
    tokenizer: Any
    max_text_length: int


def load_models(config: CacheConfig) -> CacheModels:
    """Load a checkpoint and keep the parts that encode. Raises UserError for shapes that they do not take."""
    pipeline = load_checkpoint(find_checkpoint(config.model))
    check_shapes(config.shapes, pipeline)
    if config.texts:
        add_text_encoder(pipeline)  # routed training needs one even if this model has none
    return CacheModels(
        pipeline.vae,
        pipeline.edit_token_encoder.frame_processor,
        pipeline.text_encoder,
        pipeline.tokenizer,
        pipeline.config.max_text_length,
    )


class Encoder(ABC):
    """Encodes groups of a manifest's triplets or texts; each group becomes a shard of the cache."""

    kind: ClassVar[str]
    cache_class: ClassVar[type[LatentCache | TextCache]]

    @abstractmethod
    def __init__(self, config: CacheConfig, models: CacheModels, device: torch.device) -> None:
        """Raise UserError if the folder's cache was made with other models or shapes."""

    @staticmethod
    @abstractmethod
    def groups(triplets: Sequence[Triplet]) -> list[Sequence[Any]]:
        """Return the groups of a manifest, which depend on nothing else."""

    @staticmethod
    @abstractmethod
    def keys(group: Sequence[Any]) -> list[str]:
        """Return the keys of a group in the cache."""

    @abstractmethod
    def encode(self, groups: Sequence[Sequence[Any]]) -> Iterator[CacheProgress]:
        """Write what is missing of each group; yield the progress."""


class LatentEncoder(Encoder):
    """Encodes clips; they are decoded ahead by worker processes, so that the device does not wait."""

    kind = "triplets"
    cache_class = LatentCache

    def __init__(self, config: CacheConfig, models: CacheModels, device: torch.device) -> None:
        self.vae, self.workers = models.vae.to(device), config.workers
        self.reader = RowReader(config.manifest, config.shapes, models.frame_processor)
        shapes = tuple(map(str, config.shapes))
        self.cache = LatentCache(
            config.folder, CacheSettings(fingerprint(self.vae.named_parameters()), shapes)
        )

    @staticmethod
    def groups(triplets: Sequence[Triplet]) -> list[Sequence[Row]]:
        """See `Encoder`."""
        return _split(list(enumerate(triplets, start=1)), SHARD)

    @staticmethod
    def keys(group: Sequence[Row]) -> list[str]:
        """See `Encoder`."""
        return [triplet.key for _, triplet in group]

    def encode(self, groups: Sequence[Sequence[Row]]) -> Iterator[CacheProgress]:
        """See `Encoder`; rows that are in the cache, also in another shard, are not read again."""
        cache = self.cache
        done = sum(key in cache for group in groups for key in self.keys(group))
        failed, total = 0, sum(map(len, groups))
        yield CacheProgress(self.kind, done, failed, total)
        pending = [group for group in groups if not cache.has_group(self.keys(group))]
        missing = [row for group in pending for row in group if row[1].key not in cache]
        missing_keys = set(self.keys(missing))
        # A forked process that uses OpenMP's threads would wait for those of its parent.
        setup = partial(torch.set_num_threads, 1)
        with closing(map_ahead(self.reader, missing, self.workers, setup)) as decoded:
            for group in pending:
                entries: dict[str, Entry] = {}
                failures: list[Failure] = []
                for key in filter(missing_keys.__contains__, self.keys(group)):
                    row = next(decoded)
                    if isinstance(row, Failure):
                        failures.append(row)
                        failed += 1
                    else:
                        entries[key] = self._encode_row(row)
                        done += 1
                    yield CacheProgress(self.kind, done, failed, total)
                cache.write_group(self.keys(group), entries, failures)

    @torch.no_grad()
    def _encode_row(self, row: DecodedRow) -> Entry:
        clips = []
        for frames, mllm_frames in zip(row.clips, row.mllm_frames, strict=True):
            pixels = to_model_range(frames, self.vae.device)
            clips.append(CachedClip(encode(self.vae, pixels[None])[0].cpu(), mllm_frames))
        return as_entry(clips, row.picture)


class TextEncoder(Encoder):
    """Encodes instructions and captions, in batches that do not depend on what is cached."""

    kind = "texts"
    cache_class = TextCache

    def __init__(self, config: CacheConfig, models: CacheModels, device: torch.device) -> None:
        models.vae.to("cpu")
        self.models, self.text_encoder = models, models.text_encoder.to(device)
        self.cache = TextCache(config.folder, TextSettings(fingerprint(self.text_encoder.named_parameters())))

    @staticmethod
    def groups(triplets: Sequence[Triplet]) -> list[Sequence[str]]:
        """See `Encoder`."""
        return _split(texts_of(triplets), TEXT_SHARD)

    @staticmethod
    def keys(group: Sequence[str]) -> list[str]:
        """See `Encoder`."""
        return list(map(text_key, group))

    @torch.no_grad()
    def encode(self, groups: Sequence[Sequence[str]]) -> Iterator[CacheProgress]:
        """See `Encoder`."""
        pending = [group for group in groups if not self.cache.has_group(self.keys(group))]
        total = sum(map(len, groups))
        done = total - sum(map(len, pending))
        yield CacheProgress(self.kind, done, 0, total)
        for group in pending:
            states: dict[str, torch.Tensor] = {}
            for batch in _split(group, TEXT_BATCH):
                padded = encode_text(
                    self.models.tokenizer, self.text_encoder, batch, self.models.max_text_length
                )
                states |= {text: trim_padding(rows).cpu() for text, rows in zip(batch, padded, strict=True)}
            self.cache.write_group(states)
            done += len(group)
            yield CacheProgress(self.kind, done, 0, total)


@dataclass(frozen=True)
class DecodedRow:
    """Source and target of a triplet in its bucket's shape, the multimodal LLM's frames, and its picture."""

    clips: list[Frames]
    mllm_frames: list[Frames]
    picture: Picture | None


@dataclass(frozen=True)
class RowReader:
    """Decodes the rows of a manifest, in any process."""

    manifest: Path
    shapes: tuple[ClipShape, ...]
    frame_processor: MLLMFrameProcessor

    def __call__(self, row: Row) -> DecodedRow | Failure:
        """Return the files of a row as they are encoded, or why they cannot be read."""
        number, triplet = row
        try:
            return self._decode(triplet)
        except UserError as error:
            manifest = str(self.manifest)
            return Failure(triplet.dataset, "cannot be read", str(error), manifest, number, triplet.id)

    def _decode(self, triplet: Triplet) -> DecodedRow:
        bucket = fitting_bucket(self.shapes, triplet)
        if bucket is None:
            shapes = ", ".join(map(str, self.shapes))
            raise UserError(f"the clip has {triplet.num_frames} frames, too few for {shapes}")
        shape = self.shapes[bucket]
        clips = read_pair(self.manifest, triplet, shape)
        picture = self._picture(triplet, shape) if triplet.reference_image else None
        return DecodedRow(clips, [self.frame_processor(clip) for clip in clips], picture)

    def _picture(self, triplet: Triplet, shape: ClipShape) -> Picture:
        """Return a reference image, no larger than the VAE and the multimodal LLM get it."""
        side = self.frame_processor.grid * math.isqrt(self.frame_processor.max_image_tokens)
        picture = read_reference_image(self.manifest, triplet)
        return shrink_to_fit(picture, max(shape.height, side), max(shape.width, side))


def _split(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]

"""Encode the clips and texts of a manifest once, for training: `rvedit prepare cache`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from rvedit.io.clips import fitting_bucket, read_pair, read_reference_image
from rvedit.io.errors import UserError
from rvedit.io.frames import Frames, to_model_range
from rvedit.io.latent_cache import (
    SETTINGS,
    CachedClip,
    CacheSettings,
    LatentCache,
    TextCache,
    TextSettings,
    fingerprint,
    texts_of,
)
from rvedit.io.manifest import Failure, read_manifest, write_failures
from rvedit.io.records import ClipShape, Triplet
from rvedit.models.autoencoder import encode
from rvedit.models.reference_images import Picture, shrink_to_fit
from rvedit.models.text_tokens import encode_text, trim_padding
from rvedit.pipelines.checkpoints import add_text_encoder, find_checkpoint, load_checkpoint
from rvedit.pipelines.clip_shapes import check_shapes
from rvedit.pipelines.loading import pick_device
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline

SHARD = 32
"""Triplets per shard: the most that an interruption can lose."""
TEXT_SHARD = 128
TEXT_BATCH = 16


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


@dataclass(frozen=True)
class CacheProgress:
    """Counts of encoded "triplets" or "texts" (`kind`)."""

    kind: str
    done: int
    failed: int
    total: int


def cache_manifest(config: CacheConfig, device: str | None = None) -> Iterator[CacheProgress]:
    """Encode both clips of every triplet, and every text, into shards in `config.folder`; yield the progress.

    Cached triplets and texts are skipped. Triplets whose clips cannot be read are listed in
    `cache.failures.jsonl` there, and tried again by the next run.
    """
    torch_device = pick_device(device)
    triplets = read_manifest(config.manifest)
    pipeline = load_checkpoint(find_checkpoint(config.model))
    check_shapes(config.shapes, pipeline)
    if config.texts:
        add_text_encoder(pipeline)  # routed training needs one even if this model has none
    yield from _cache_latents(config, triplets, pipeline, torch_device)
    if config.texts:
        yield from _cache_texts(config, triplets, pipeline, torch_device)


def _cache_latents(
    config: CacheConfig, triplets: list[Triplet], pipeline: RVEDiTPipeline, device: torch.device
) -> Iterator[CacheProgress]:
    vae = pipeline.vae.to(device)
    frame_processor = pipeline.edit_token_encoder.frame_processor
    shapes = tuple(str(shape) for shape in config.shapes)
    # Neither the VAE nor the multimodal LLM gets larger reference images.
    image_side = frame_processor.grid * math.isqrt(frame_processor.max_image_tokens)
    cache = LatentCache(config.folder, CacheSettings(fingerprint(vae.named_parameters()), shapes))
    pending = [(row, t) for row, t in enumerate(triplets, start=1) if t.key not in cache]
    failures: list[Failure] = []

    def encode_clip(clip: Frames) -> CachedClip:
        return CachedClip(encode(vae, to_model_range(clip)[None].to(device))[0].cpu(), frame_processor(clip))

    def progress(unwritten: int = 0) -> CacheProgress:
        return CacheProgress("triplets", len(cache) + unwritten, len(failures), len(triplets))

    yield progress()
    for start in range(0, len(pending), SHARD):
        shard: dict[str, tuple[CachedClip, CachedClip]] = {}
        pictures: dict[str, Picture] = {}
        for row, triplet in pending[start : start + SHARD]:
            bucket = fitting_bucket(config.shapes, triplet)
            try:
                if bucket is None:
                    raise UserError(
                        f"the clip has {triplet.num_frames} frames, too few for {', '.join(shapes)}"
                    )
                shape = config.shapes[bucket]
                pair = read_pair(config.manifest, triplet, shape)
                if triplet.reference_image:
                    picture = read_reference_image(config.manifest, triplet)
                    pictures[triplet.key] = shrink_to_fit(
                        picture, max(shape.height, image_side), max(shape.width, image_side)
                    )
            except UserError as error:
                manifest = str(config.manifest)
                failures.append(
                    Failure(triplet.dataset, "cannot be read", str(error), manifest, row, triplet.id)
                )
                continue
            with torch.no_grad():
                source, target = (encode_clip(clip) for clip in pair)
            shard[triplet.key] = (source, target)
            yield progress(len(shard))
        if shard:
            cache.add(shard, pictures)
    yield progress()
    write_failures(config.folder / SETTINGS, failures)


def _cache_texts(
    config: CacheConfig, triplets: list[Triplet], pipeline: RVEDiTPipeline, device: torch.device
) -> Iterator[CacheProgress]:
    pipeline.vae.to("cpu")
    encoder = pipeline.text_encoder.to(device)
    cache = TextCache(config.folder, TextSettings(fingerprint(encoder.named_parameters())))
    texts = texts_of(triplets)
    pending = [text for text in texts if text not in cache]
    done = len(texts) - len(pending)
    shard: dict[str, torch.Tensor] = {}
    for start in range(0, len(pending), TEXT_BATCH):
        batch = pending[start : start + TEXT_BATCH]
        with torch.no_grad():
            states = encode_text(pipeline.tokenizer, encoder, batch, pipeline.config.max_text_length)
        shard |= {text: trim_padding(rows).cpu() for text, rows in zip(batch, states, strict=True)}
        done += len(batch)
        if len(shard) >= TEXT_SHARD or done == len(texts):
            cache.add(shard)
            shard = {}
        yield CacheProgress("texts", done, 0, len(texts))

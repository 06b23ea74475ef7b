"""`rvedit prepare cache`: what training reads of a manifest's clips and words, encoded once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from rvedit.io.clips import fitting_bucket, read_pair
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
from rvedit.models.text_tokens import encode_text, trim_padding
from rvedit.pipelines.checkpoints import add_text_encoder, find_checkpoint, load_checkpoint
from rvedit.pipelines.clip_shapes import check_shapes
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline

SHARD = 32
"""Triplets in a shard: the most that an interruption can lose."""
TEXT_SHARD = 128
TEXTS_AT_ONCE = 16


@dataclass(frozen=True)
class CacheConfig:
    """What is to be encoded, and with what."""

    manifest: Path
    folder: Path
    model: str = "nano"
    """Whose VAE encodes, and whose multimodal LLM is to see the frames."""
    shapes: tuple[ClipShape, ...] = (ClipShape(81, 704, 1280),)
    """The buckets; a triplet is encoded in the one that fits it."""
    texts: bool = True
    """Encode instructions and captions too; training uses them where the text encoder is frozen."""


@dataclass(frozen=True)
class CacheProgress:
    """How far it is, of triplets or of texts."""

    what: str
    done: int
    failed: int
    total: int


def cache_manifest(config: CacheConfig, device: str | None = None) -> Iterator[CacheProgress]:
    """Encode both clips of every triplet, and every text, into shards in `order.folder`, yielding after each.

    What is in the folder already is left alone; triplets whose clips cannot be read are listed in
    `cache.failures.jsonl` there, and tried again the next time.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    triplets = read_manifest(config.manifest)
    pipeline = load_checkpoint(find_checkpoint(config.model))
    check_shapes(config.shapes, pipeline)
    if config.texts:
        add_text_encoder(pipeline)  # which a training needs that routes, if this model does not
    yield from _cache_latents(config, triplets, pipeline, place)
    if config.texts:
        yield from _cache_texts(config, triplets, pipeline, place)


def _cache_latents(
    config: CacheConfig, triplets: list[Triplet], pipeline: RVEDiTPipeline, place: torch.device
) -> Iterator[CacheProgress]:
    vae = pipeline.vae.to(place)
    frame_processor = pipeline.edit_token_encoder.frame_processor
    shapes = tuple(str(shape) for shape in config.shapes)
    cache = LatentCache(config.folder, CacheSettings(fingerprint(vae.named_parameters()), shapes))
    waiting = [(row, t) for row, t in enumerate(triplets, start=1) if t.key not in cache]
    failures: list[Failure] = []

    def cached(clip: Frames) -> CachedClip:
        return CachedClip(encode(vae, to_model_range(clip)[None].to(place))[0].cpu(), frame_processor(clip))

    def progress(more: int = 0) -> CacheProgress:
        return CacheProgress("triplets", len(cache) + more, len(failures), len(triplets))

    yield progress()
    for start in range(0, len(waiting), SHARD):
        shard: dict[str, tuple[CachedClip, CachedClip]] = {}
        for row, triplet in waiting[start : start + SHARD]:
            bucket = fitting_bucket(config.shapes, triplet)
            try:
                if bucket is None:
                    raise UserError(f"its {triplet.num_frames} frames fill none of {', '.join(shapes)}")
                pair = read_pair(config.manifest, triplet, config.shapes[bucket])
            except UserError as error:
                manifest = str(config.manifest)
                failures.append(
                    Failure(triplet.dataset, "cannot be read", str(error), manifest, row, triplet.id)
                )
                continue
            with torch.no_grad():
                source, target = (cached(clip) for clip in pair)
            shard[triplet.key] = (source, target)
            yield progress(len(shard))
        if shard:
            cache.add(shard)
    yield progress()
    write_failures(config.folder / SETTINGS, failures)


def _cache_texts(
    config: CacheConfig, triplets: list[Triplet], pipeline: RVEDiTPipeline, place: torch.device
) -> Iterator[CacheProgress]:
    pipeline.vae.to("cpu")
    encoder = pipeline.text_encoder.to(place)
    cache = TextCache(config.folder, TextSettings(fingerprint(encoder.named_parameters())))
    texts = texts_of(triplets)
    waiting = [text for text in texts if text not in cache]
    done = len(texts) - len(waiting)
    shard: dict[str, torch.Tensor] = {}
    for start in range(0, len(waiting), TEXTS_AT_ONCE):
        few = waiting[start : start + TEXTS_AT_ONCE]
        with torch.no_grad():
            states = encode_text(pipeline.tokenizer, encoder, few, pipeline.config.max_text_length)
        shard |= {text: trim_padding(rows).cpu() for text, rows in zip(few, states, strict=True)}
        done += len(few)
        if len(shard) >= TEXT_SHARD or done == len(texts):
            cache.add(shard)
            shard = {}
        yield CacheProgress("texts", done, 0, len(texts))

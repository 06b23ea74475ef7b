"""`rvedit prepare cache`: what training reads of a manifest's clips and words, encoded once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from rvedit.checkpoints import add_text_encoder, find_checkpoint, load_pipeline
from rvedit.data.cache import (
    SETTINGS,
    CachedClip,
    CacheSettings,
    LatentCache,
    TextCache,
    TextSettings,
    fingerprint,
    texts_of,
)
from rvedit.data.clips import read_pair
from rvedit.data.manifest import Failure, read_manifest, write_failures
from rvedit.errors import UserError
from rvedit.model.latents import encode
from rvedit.model.text_tokens import encode_text, trim_padding
from rvedit.pipeline import RVEDiTPipeline
from rvedit.records import ClipShape, Triplet
from rvedit.training.buckets import check_shapes, fitting_bucket
from rvedit.video_tensors import Frames, to_model_range

SHARD = 32
"""Triplets in a shard: the most that an interruption can lose."""
TEXT_SHARD = 128
TEXTS_AT_ONCE = 16


@dataclass(frozen=True)
class CacheOrder:
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


def cache_manifest(order: CacheOrder, device: str | None = None) -> Iterator[CacheProgress]:
    """Encode both clips of every triplet, and every text, into shards in `order.folder`, yielding after each.

    What is in the folder already is left alone; triplets whose clips cannot be read are listed in
    `cache.failures.jsonl` there, and tried again the next time.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    triplets = read_manifest(order.manifest)
    pipeline = load_pipeline(find_checkpoint(order.model))
    check_shapes(order.shapes, pipeline)
    if order.texts:
        add_text_encoder(pipeline)  # which a training needs that routes, if this model does not
    yield from _cache_latents(order, triplets, pipeline, place)
    if order.texts:
        yield from _cache_texts(order, triplets, pipeline, place)


def _cache_latents(
    order: CacheOrder, triplets: list[Triplet], pipeline: RVEDiTPipeline, place: torch.device
) -> Iterator[CacheProgress]:
    vae = pipeline.vae.to(place)
    sight = pipeline.edit_token_encoder.sight
    shapes = tuple(str(shape) for shape in order.shapes)
    cache = LatentCache(order.folder, CacheSettings(fingerprint(vae.named_parameters()), shapes))
    waiting = [(row, t) for row, t in enumerate(triplets, start=1) if t.key not in cache]
    failures: list[Failure] = []

    def cached(clip: Frames) -> CachedClip:
        return CachedClip(encode(vae, to_model_range(clip)[None].to(place))[0].cpu(), sight(clip))

    def progress(more: int = 0) -> CacheProgress:
        return CacheProgress("triplets", len(cache) + more, len(failures), len(triplets))

    yield progress()
    for start in range(0, len(waiting), SHARD):
        shard: dict[str, tuple[CachedClip, CachedClip]] = {}
        for row, triplet in waiting[start : start + SHARD]:
            bucket = fitting_bucket(order.shapes, triplet)
            try:
                if bucket is None:
                    raise UserError(f"its {triplet.num_frames} frames fill none of {', '.join(shapes)}")
                pair = read_pair(order.manifest, triplet, order.shapes[bucket])
            except UserError as error:
                manifest = str(order.manifest)
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
    write_failures(order.folder / SETTINGS, failures)


def _cache_texts(
    order: CacheOrder, triplets: list[Triplet], pipeline: RVEDiTPipeline, place: torch.device
) -> Iterator[CacheProgress]:
    pipeline.vae.to("cpu")
    encoder = pipeline.text_encoder.to(place)
    cache = TextCache(order.folder, TextSettings(fingerprint(encoder.named_parameters())))
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

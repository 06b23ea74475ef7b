"""`rvedit prepare cache`: the latents of a manifest's clips, encoded once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from rvedit.checkpoints import find_checkpoint, load_pipeline
from rvedit.data.cache import SETTINGS, CachedClip, CacheSettings, LatentCache, fingerprint
from rvedit.data.clips import read_pair
from rvedit.data.manifest import Failure, read_manifest, write_failures
from rvedit.errors import UserError
from rvedit.model.latents import encode
from rvedit.training.data import Sight
from rvedit.video_tensors import Frames, to_model_range

SHARD = 32
"""Triplets in a shard: the most that an interruption can lose."""


@dataclass(frozen=True)
class CacheOrder:
    """What is to be encoded, and with what."""

    manifest: Path
    folder: Path
    model: str = "nano"
    """Whose VAE encodes, and whose multimodal LLM is to see the frames."""
    num_frames: int = 81
    height: int = 704
    width: int = 1280


@dataclass(frozen=True)
class CacheProgress:
    """How far it is."""

    done: int
    failed: int
    total: int


def cache_latents(order: CacheOrder, device: str | None = None) -> Iterator[CacheProgress]:
    """Encode both clips of every triplet into shards in `order.folder`, yielding after each.

    Triplets that are in the folder already are left alone; those whose clips cannot be read are listed in
    `cache.failures.jsonl` there, and tried again the next time.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    triplets = read_manifest(order.manifest)
    pipeline = load_pipeline(find_checkpoint(order.model))
    vae = pipeline.vae.to(place)
    encoder = pipeline.edit_token_encoder
    sight = Sight(encoder.connector.config.max_frames, *encoder.seen_size(order.height, order.width))
    settings = CacheSettings(fingerprint(vae.named_parameters()), order.num_frames, order.height, order.width)
    cache = LatentCache(order.folder, settings)
    numbered = enumerate(triplets, start=1)
    waiting = [(row, triplet) for row, triplet in numbered if triplet.key not in cache.shard_of]
    failures: list[Failure] = []

    def cached(clip: Frames) -> CachedClip:
        return CachedClip(encode(vae, to_model_range(clip)[None].to(place))[0].cpu(), sight(clip))

    yield CacheProgress(len(triplets) - len(waiting), 0, len(triplets))
    for start in range(0, len(waiting), SHARD):
        shard: dict[str, tuple[CachedClip, CachedClip]] = {}
        for row, triplet in waiting[start : start + SHARD]:
            try:
                pair = read_pair(order.manifest, triplet, order.num_frames, order.height, order.width)
            except UserError as error:
                manifest = str(order.manifest)
                failures.append(
                    Failure(triplet.dataset, "cannot be read", str(error), manifest, row, triplet.id)
                )
                continue
            with torch.no_grad():
                source, target = (cached(clip) for clip in pair)
            shard[triplet.key] = (source, target)
            yield CacheProgress(len(cache.shard_of) + len(shard), len(failures), len(triplets))
        if shard:
            cache.add(shard)
    write_failures(order.folder / SETTINGS, failures)

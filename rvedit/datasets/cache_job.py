"""Encode the clips and texts of a manifest once, for training: `rvedit prepare cache`.

The rows and texts of the manifest are divided into groups of a fixed size, in their order; each group becomes
a shard of the cache. Processes share the groups by their numbers. The files therefore do not depend on the
number of processes, nor on interruptions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from rvedit.datasets.cache_encoders import (
    CacheConfig,
    CacheProgress,
    Encoder,
    LatentEncoder,
    TextEncoder,
    load_models,
)
from rvedit.io.latent_cache import LatentCache, TextCache, texts_of
from rvedit.io.manifest import read_manifest
from rvedit.io.ray_jobs import run_actors
from rvedit.io.records import Triplet
from rvedit.pipelines.loading import pick_device

__all__ = ["CacheConfig", "CacheProgress", "CacheReport", "cache_manifest", "report_cache"]


def cache_manifest(
    config: CacheConfig, device: str | None = None, ray: str | None = None
) -> Iterator[CacheProgress]:
    """Encode both clips of every triplet, and every text, of this process's share; yield the progress.

    What is cached is left as it is. Triplets that cannot be read are listed beside their shard, and tried
    again by the next run. `ray` is the address of a cluster to encode on, as of `run_actors`.
    """
    triplets = read_manifest(config.manifest)
    kinds: tuple[type[Encoder], ...] = (LatentEncoder, TextEncoder) if config.texts else (LatentEncoder,)
    if ray:
        for kind in kinds:
            yield from _encode_on_ray(kind, config, triplets, device, ray)
            _remove_superseded(kind, config, triplets)
        return
    place = pick_device(device)
    models = load_models(config)
    index, count = config.shard
    for kind in kinds:
        yield from kind(config, models, place).encode(kind.groups(triplets)[index::count])
        _remove_superseded(kind, config, triplets)


def _remove_superseded(kind: type[Encoder], config: CacheConfig, triplets: list[Triplet]) -> None:
    """Remove shards that larger ones have replaced, if all processes are done."""
    kind.cache_class(config.folder).remove_superseded(list(map(kind.keys, kind.groups(triplets))))


class _GroupActor:
    """Encodes groups of a manifest by their numbers, with models of its own."""

    def __init__(self, kind: type[Encoder], config: CacheConfig, device: str | None) -> None:
        self.groups = kind.groups(read_manifest(config.manifest))
        self.encoder = kind(config, load_models(config), pick_device(device))

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        *_, last = self.encoder.encode([self.groups[job["group"]]])
        return {"done": last.done, "failed": last.failed}


def _encode_on_ray(
    kind: type[Encoder], config: CacheConfig, triplets: list[Triplet], device: str | None, address: str
) -> Iterator[CacheProgress]:
    groups = kind.groups(triplets)
    done, failed, total = 0, 0, sum(map(len, groups))
    yield CacheProgress(kind.kind, done, failed, total)
    actor = partial(_GroupActor, kind, config, device)
    for result in run_actors(actor, [{"group": number} for number in range(len(groups))], address):
        done, failed = done + result["done"], failed + result["failed"]
        yield CacheProgress(kind.kind, done, failed, total)


@dataclass(frozen=True)
class CacheReport:
    """What a cache has of a manifest, by all processes."""

    cached: int
    failed: int
    """Triplets that could not be read."""
    count: int
    """Triplets of the manifest."""
    texts: int | None
    """Cached texts; None if they are left out."""


def report_cache(config: CacheConfig) -> CacheReport:
    """Return the state of a cache as all processes have left it so far."""
    triplets, cache = read_manifest(config.manifest), LatentCache(config.folder)
    cached = sum(triplet.key in cache for triplet in triplets)
    failed = len(cache.failed.intersection(triplet.key for triplet in triplets))
    texts = None
    if config.texts:
        text_cache = TextCache(config.folder)
        texts = sum(text in text_cache for text in texts_of(triplets))
    return CacheReport(cached, failed, len(triplets), texts)

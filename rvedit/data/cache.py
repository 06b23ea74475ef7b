"""A cache of latents: what training would encode anew in every epoch, encoded once.

A folder of safetensors shards, each written whole, and beside each the list of the triplets in it; triplets
that are listed are not encoded again. The multimodal LLM's frames are kept with the latents, so that the
clips themselves are not needed any more. `cache.json` says what the latents are of; a cache for another VAE,
size or length is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rvedit.data.manifest import write_json
from rvedit.errors import UserError
from rvedit.records import Triplet
from rvedit.video import temporary_sibling
from rvedit.video_tensors import Frames

SETTINGS = "cache.json"
SIDES = ("source", "target")


@dataclass(frozen=True)
class CachedClip:
    """One side of a triplet."""

    latents: Float[Tensor, "c f y x"]
    seen: UInt8[Frames, "n h w 3"]
    """What the multimodal LLM sees."""


@dataclass(frozen=True)
class CacheSettings:
    """What the latents of a cache are of."""

    vae: str
    """Fingerprint of the VAE's weights."""
    num_frames: int
    height: int
    width: int
    dtype: str = "bfloat16"


class LatentCache:
    """A folder of shards, to read from and to add to."""

    def __init__(self, folder: Path, settings: CacheSettings | None = None):
        self.folder = folder
        path = folder / SETTINGS
        if settings is None:
            if not path.is_file():
                raise UserError(f"{folder}: no cache of latents: make one with `rvedit prepare cache`")
            settings = CacheSettings(**json.loads(path.read_text(encoding="utf-8")))
        elif path.is_file():
            there = CacheSettings(**json.loads(path.read_text(encoding="utf-8")))
            if there != settings:
                differing = next(k for k, v in asdict(there).items() if v != getattr(settings, k))
                raise UserError(
                    f"{folder}: the cache there has another {differing} ({getattr(there, differing)}, not "
                    f"{getattr(settings, differing)}): choose another --out"
                )
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(path, asdict(settings))
        self.settings = settings
        self.shard_of: dict[str, str] = {}
        for listing in sorted(folder.glob("shard-*.json")):
            shard = listing.with_suffix(".safetensors")
            if shard.is_file():
                self.shard_of |= dict.fromkeys(json.loads(listing.read_text(encoding="utf-8")), shard.name)

    def require(self, triplets: Sequence[Triplet], num_frames: int, height: int, width: int) -> None:
        """Raise UserError where triplets are missing, or the clips are of another size than asked for."""
        for name, wanted in (("num_frames", num_frames), ("height", height), ("width", width)):
            if getattr(self.settings, name) != wanted:
                raise UserError(
                    f"{self.folder}: the cache has {name} {getattr(self.settings, name)}, the recipe has "
                    f"{wanted}: use --set data.{name}={getattr(self.settings, name)}, or make another cache"
                )
        missing = [triplet.key for triplet in triplets if triplet.key not in self.shard_of]
        if missing:
            raise UserError(
                f"{self.folder}: {missing[0]} and {len(missing) - 1} more of the manifest are not cached: "
                "run `rvedit prepare cache` again"
            )

    def read(self, key: str) -> tuple[CachedClip, CachedClip]:
        """Source and target of a triplet."""
        with safe_open(self.folder / self.shard_of[key], "pt") as shard:
            source, target = (
                CachedClip(
                    shard.get_tensor(f"{key}/{side}/latents"), shard.get_tensor(f"{key}/{side}/seen").numpy()
                )
                for side in SIDES
            )
        return source, target

    def add(self, clips: Mapping[str, tuple[CachedClip, CachedClip]]) -> None:
        """Write a shard of triplets, by key."""
        tensors = {}
        for key, pair in clips.items():
            for side, clip in zip(SIDES, pair, strict=True):
                tensors[f"{key}/{side}/latents"] = clip.latents.to(
                    getattr(torch, self.settings.dtype)
                ).contiguous()
                tensors[f"{key}/{side}/seen"] = torch.from_numpy(clip.seen).contiguous()
        name = hashlib.sha256("\n".join(clips).encode()).hexdigest()[:16]
        shard = self.folder / f"shard-{name}.safetensors"
        part = temporary_sibling(shard)
        save_file(tensors, part)
        part.replace(shard)
        write_json(shard.with_suffix(".json"), list(clips))  # last: what is listed is there
        self.shard_of |= dict.fromkeys(clips, shard.name)


def fingerprint(parameters: Iterable[tuple[str, Tensor]]) -> str:
    """A hash of names and weights."""
    digest = hashlib.sha256()
    for name, tensor in parameters:
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]

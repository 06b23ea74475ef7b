"""A cache of what training would encode anew in every epoch: latents, and states of the text encoder.

A folder of safetensors shards, each written whole, and beside each the list of what is in it; what is listed
is not encoded again. The multimodal LLM's frames are kept with the latents, so that the clips themselves are
not needed any more; texts are kept by their words, so that a caption written anew is a text to encode. A JSON
file says what either is of; another VAE, text encoder, size or length is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float, UInt8
from pydantic import TypeAdapter
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rvedit.io.errors import UserError
from rvedit.io.frames import Frames
from rvedit.io.manifest import Failure, failures_path, read_rows, write_json
from rvedit.io.records import ClipShape, Triplet
from rvedit.io.video import temporary_sibling

SETTINGS = "cache.json"
TEXT_SETTINGS = "texts.json"
SIDES = ("source", "target")
Settings = TypeVar("Settings", "CacheSettings", "TextSettings")


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
    shapes: tuple[str, ...]
    """Frames x height x width of the buckets."""
    dtype: str = "bfloat16"


@dataclass(frozen=True)
class TextSettings:
    """What the text states of a cache are of."""

    text_encoder: str
    """Fingerprint of its weights."""
    dtype: str = "bfloat16"


class _Shards:
    """Named tensors by key, in files of many keys."""

    def __init__(self, folder: Path, prefix: str, dtype: str):
        self.folder, self.prefix = folder, prefix
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.of: dict[str, Path] = {}
        for listing in sorted(folder.glob(f"{prefix}-*.json")):
            shard = listing.with_suffix(".safetensors")
            if shard.is_file():
                self.of |= dict.fromkeys(json.loads(listing.read_text(encoding="utf-8")), shard)

    def read(self, key: str, names: Sequence[str]) -> list[Tensor]:
        """The named tensors of a key."""
        with safe_open(self.of[key], "pt") as shard:
            return [shard.get_tensor(f"{key}/{name}") for name in names]

    def add(self, entries: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Write a shard; floats in the cache's precision."""
        tensors = {
            f"{key}/{name}": (x.to(self.dtype) if x.is_floating_point() else x).contiguous()
            for key, parts in entries.items()
            for name, x in parts.items()
        }
        digest = hashlib.sha256("\n".join(entries).encode()).hexdigest()[:16]
        shard = self.folder / f"{self.prefix}-{digest}.safetensors"
        part = temporary_sibling(shard)
        save_file(tensors, part)
        part.replace(shard)
        write_json(shard.with_suffix(".json"), list(entries))  # last: what is listed is there
        self.of |= dict.fromkeys(entries, shard)


class LatentCache:
    """Latents of triplets, to read and to add to."""

    def __init__(self, folder: Path, settings: CacheSettings | None = None):
        if settings is None and not (folder / SETTINGS).is_file():
            raise UserError(f"{folder}: no cache of latents: make one with `rvedit prepare cache`")
        self.folder = folder
        self.settings = _agree(folder / SETTINGS, CacheSettings, settings)
        self._shards = _Shards(folder, "shard", self.settings.dtype)

    def __contains__(self, key: str) -> bool:
        return key in self._shards.of

    def __len__(self) -> int:
        return len(self._shards.of)

    @property
    def failed(self) -> set[str]:
        """The keys of triplets that could not be read when the cache was made last."""
        path = failures_path(self.folder / SETTINGS)
        rows = read_rows(path) if path.is_file() else []
        return {Failure(**row).key for row in rows} - set(self._shards.of)

    def require(self, triplets: Sequence[Triplet], shapes: Sequence[ClipShape], vae: str) -> None:
        """Raise UserError where triplets are missing, or the latents are of other shapes or another VAE."""
        wanted = tuple(str(shape) for shape in shapes)
        if wanted != self.settings.shapes:
            there, asked = (" and ".join(s) for s in (self.settings.shapes, wanted))
            raise UserError(
                f"{self.folder}: the cache has clips of {there}, the recipe asks for {asked}: change "
                "data.num_frames, height, width or buckets, or make another cache"
            )
        if vae != self.settings.vae:
            raise UserError(
                f"{self.folder}: the latents are of another VAE than the model's: make a cache with "
                "`rvedit prepare cache --model` and the recipe's model"
            )
        missing = [triplet.key for triplet in triplets if triplet.key not in self]
        if missing:
            raise UserError(
                f"{self.folder}: {missing[0]} and {len(missing) - 1} more of the manifest are not cached: "
                "run `rvedit prepare cache` again"
            )

    def read(self, key: str) -> tuple[CachedClip, CachedClip]:
        """Source and target of a triplet."""
        names = [f"{side}/{part}" for side in SIDES for part in ("latents", "seen")]
        a, b, c, d = self._shards.read(key, names)
        return CachedClip(a, b.numpy()), CachedClip(c, d.numpy())

    def add(self, clips: Mapping[str, tuple[CachedClip, CachedClip]]) -> None:
        """Write a shard of triplets, by key."""
        entries: dict[str, dict[str, Tensor]] = {}
        for key, pair in clips.items():
            entries[key] = {}
            for side, clip in zip(SIDES, pair, strict=True):
                entries[key] |= {
                    f"{side}/latents": clip.latents,
                    f"{side}/seen": torch.from_numpy(clip.seen),
                }
        self._shards.add(entries)


class TextCache:
    """States of the text encoder by the words, to read and to add to."""

    def __init__(self, folder: Path, settings: TextSettings | None = None):
        self.folder = folder
        self.settings = _agree(folder / TEXT_SETTINGS, TextSettings, settings)
        self._shards = _Shards(folder, "text", self.settings.dtype)

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Whether a cache has text states."""
        return (folder / TEXT_SETTINGS).is_file()

    def __contains__(self, text: str) -> bool:
        return _text_key(text) in self._shards.of

    def require(self, texts: Iterable[str], text_encoder: str) -> None:
        """Raise UserError where texts are missing, or the states are of another encoder."""
        if text_encoder != self.settings.text_encoder:
            raise UserError(
                f"{self.folder}: the text states are of another text encoder than the model's: make a cache "
                "with `rvedit prepare cache --model` and the recipe's model"
            )
        missing = [text for text in texts if text not in self]
        if missing:
            raise UserError(
                f"{self.folder}: {missing[0]!r} and {len(missing) - 1} more texts are not cached: run "
                "`rvedit prepare cache` again"
            )

    def read(self, text: str) -> Float[Tensor, "n c"]:
        """A text's states, without padding."""
        return self._shards.read(_text_key(text), ["states"])[0]

    def add(self, states: Mapping[str, Float[Tensor, "n c"]]) -> None:
        """Write a shard of texts."""
        self._shards.add({_text_key(text): {"states": tensor} for text, tensor in states.items()})


def texts_of(triplets: Sequence[Triplet]) -> list[str]:
    """All that the text encoder reads, each once; the empty text is what stands for dropped words."""
    words = [text for t in triplets for text in (t.instruction, t.target_caption) if text]
    return list(dict.fromkeys(["", *words]))


def _text_key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _agree(path: Path, kind: type[Settings], settings: Settings | None) -> Settings:
    """The settings in a file, which must be those asked for; a file that is not there is written."""
    if path.is_file():
        there = TypeAdapter(kind).validate_json(path.read_text(encoding="utf-8"))
        for name, value in asdict(there).items():
            if settings is not None and value != getattr(settings, name):
                raise UserError(
                    f"{path.parent}: the cache there has another {name} ({value}, not "
                    f"{getattr(settings, name)}): choose another --out"
                )
        return there
    assert settings is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(settings))
    return settings


def fingerprint(parameters: Iterable[tuple[str, Tensor]]) -> str:
    """A hash of names and weights."""
    digest = hashlib.sha256()
    for name, tensor in parameters:
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]

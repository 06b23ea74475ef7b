"""Cache of VAE latents and text encoder states, so that training does not encode them in every epoch.

A folder of safetensors shards, each with a JSON list of its keys; listed keys are not encoded again. The
frames for the multimodal LLM, and reference images, are stored with the latents, so that training does not
need the files. Text
states are keyed by a hash of the text, so that a changed caption is encoded again. A JSON file records the
settings; a cache made with another VAE, text encoder, size or length is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
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
from rvedit.io.temporary import atomic_path

SETTINGS = "cache.json"
TEXT_SETTINGS = "texts.json"
_CLIP_TENSORS = ("source/latents", "source/seen", "target/latents", "target/seen")
_PICTURE = "reference_image"
Picture = UInt8[np.ndarray, "_ _ 3"]
Settings = TypeVar("Settings", "CacheSettings", "TextSettings")


@dataclass(frozen=True)
class CachedClip:
    """Encoded source or target of a triplet."""

    latents: Float[Tensor, "c f y x"]
    mllm_frames: UInt8[Frames, "n h w 3"]
    """Input frames of the multimodal LLM."""


@dataclass(frozen=True)
class CacheSettings:
    """VAE, clip shapes and dtype of cached latents."""

    vae: str
    """Fingerprint of the VAE weights."""
    shapes: tuple[str, ...]
    """Buckets as "frames x height x width"."""
    dtype: str = "bfloat16"


@dataclass(frozen=True)
class TextSettings:
    """Text encoder and dtype of cached text states."""

    text_encoder: str
    """Fingerprint of the encoder weights."""
    dtype: str = "bfloat16"


class _Cache:
    """Named tensors by key, in safetensors files of many keys each."""

    def __init__(self, folder: Path, prefix: str, dtype: str):
        self.folder, self.prefix = folder, prefix
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.path_of: dict[str, Path] = {}
        for listing in sorted(folder.glob(f"{prefix}-*.json")):
            shard = listing.with_suffix(".safetensors")
            if shard.is_file():
                self.path_of |= dict.fromkeys(json.loads(listing.read_text(encoding="utf-8")), shard)

    def __contains__(self, key: str) -> bool:
        return key in self.path_of

    def read_tensors(self, key: str, names: Sequence[str]) -> list[Tensor]:
        """Return the named tensors of a key."""
        with safe_open(self.path_of[key], "pt") as shard:
            return [shard.get_tensor(f"{key}/{name}") for name in names]

    def write_shard(self, entries: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Write the named tensors of new keys, with floats in the cache's dtype."""
        tensors = {
            f"{key}/{name}": (x.to(self.dtype) if x.is_floating_point() else x).contiguous()
            for key, parts in entries.items()
            for name, x in parts.items()
        }
        digest = hashlib.sha256("\n".join(entries).encode()).hexdigest()[:16]
        shard = self.folder / f"{self.prefix}-{digest}.safetensors"
        with atomic_path(shard) as temporary:
            save_file(tensors, temporary)
        write_json(shard.with_suffix(".json"), list(entries))  # last, so that listed keys exist
        self.path_of |= dict.fromkeys(entries, shard)

    def check(self, items: str, encoder: str, is_same: bool, missing: Sequence[str]) -> None:
        """Raise UserError if the items were encoded by another encoder, or if some are missing."""
        if not is_same:
            raise UserError(
                f"{self.folder}: {items} were encoded by another {encoder} than the model's: make a cache "
                "with `rvedit prepare cache --model` and the recipe's model"
            )
        if missing:
            raise UserError(
                f"{self.folder}: {missing[0]!r} and {len(missing) - 1} more {items} are not cached: run "
                "`rvedit prepare cache` again"
            )


class LatentCache(_Cache):
    """Cached latents of triplets, by key."""

    def __init__(self, folder: Path, settings: CacheSettings | None = None):
        self.settings = _read_or_write_settings(folder / SETTINGS, CacheSettings, settings)
        super().__init__(folder, "shard", self.settings.dtype)

    def __len__(self) -> int:
        return len(self.path_of)

    @property
    def failed(self) -> set[str]:
        """Return the keys of triplets that could not be read in the last run of `rvedit prepare cache`."""
        path = failures_path(self.folder / SETTINGS)
        rows = read_rows(path) if path.is_file() else []
        return {Failure(**row).key for row in rows} - set(self.path_of)

    def require(self, triplets: Sequence[Triplet], shapes: Sequence[ClipShape], vae: str) -> None:
        """Raise UserError if triplets are missing, or the latents have other shapes or another VAE."""
        wanted = tuple(str(shape) for shape in shapes)
        if wanted != self.settings.shapes:
            raise UserError(
                f"{self.folder}: has clips of {' and '.join(self.settings.shapes)}, the recipe needs "
                f"{' and '.join(wanted)}: change data.num_frames, height, width or buckets, or the cache"
            )
        missing = [triplet.key for triplet in triplets if triplet.key not in self]
        self.check("triplets", "VAE", vae == self.settings.vae, missing)

    def read(self, key: str) -> tuple[CachedClip, CachedClip]:
        """Return source and target of a triplet."""
        a, b, c, d = self.read_tensors(key, _CLIP_TENSORS)
        return CachedClip(a, b.numpy()), CachedClip(c, d.numpy())

    def read_picture(self, key: str) -> Picture:
        """Return the reference image of a triplet that has one."""
        with safe_open(self.path_of[key], "pt") as shard:
            if (name := f"{key}/{_PICTURE}") not in shard.keys():  # noqa: SIM118
                raise UserError(
                    f"{self.folder}: was made without reference images: make it again with `rvedit prepare "
                    "cache`"
                )
            picture: Picture = shard.get_tensor(name).numpy()
        return picture

    def add(
        self,
        clips: Mapping[str, tuple[CachedClip, CachedClip]],
        pictures: Mapping[str, Picture] | None = None,
    ) -> None:
        """Write a shard of triplets, and the reference images of those that have one, by key."""
        entries = {}
        for key, pair in clips.items():
            tensors = [x for clip in pair for x in (clip.latents, torch.from_numpy(clip.mllm_frames))]
            entries[key] = dict(zip(_CLIP_TENSORS, tensors, strict=True))
        for key, picture in (pictures or {}).items():
            entries[key][_PICTURE] = torch.from_numpy(picture)
        self.write_shard(entries)


class TextCache(_Cache):
    """Cached text encoder states, by the hashes of the texts."""

    def __init__(self, folder: Path, settings: TextSettings | None = None):
        self.settings = _read_or_write_settings(folder / TEXT_SETTINGS, TextSettings, settings)
        super().__init__(folder, "text", self.settings.dtype)

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Return whether a cache folder has text states."""
        return (folder / TEXT_SETTINGS).is_file()

    def __contains__(self, text: str) -> bool:
        return super().__contains__(_text_key(text))

    def require(self, texts: Iterable[str], text_encoder: str) -> None:
        """Raise UserError if texts are missing, or the states come from another text encoder."""
        missing = [text for text in texts if text not in self]
        self.check("texts", "text encoder", text_encoder == self.settings.text_encoder, missing)

    def read(self, text: str) -> Float[Tensor, "n c"]:
        """Return the states of a text, without padding."""
        return self.read_tensors(_text_key(text), ["states"])[0]

    def add(self, states: Mapping[str, Float[Tensor, "n c"]]) -> None:
        """Write a shard of texts."""
        self.write_shard({_text_key(text): {"states": tensor} for text, tensor in states.items()})


def texts_of(triplets: Sequence[Triplet]) -> list[str]:
    """Return all texts to encode, each once: instructions, captions and the empty prompt (text dropout)."""
    texts = [text for t in triplets for text in (t.instruction, t.target_caption) if text]
    return list(dict.fromkeys(["", *texts]))


def _text_key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read_or_write_settings(path: Path, kind: type[Settings], settings: Settings | None) -> Settings:
    """Return the settings in a file, written first if it is missing; raise UserError if they differ."""
    if path.is_file():
        saved = TypeAdapter(kind).validate_json(path.read_text(encoding="utf-8"))
        for name, value in asdict(saved).items():
            if settings is not None and value != getattr(settings, name):
                raise UserError(
                    f"{path.parent}: the cache was made with {name} {value}, not {getattr(settings, name)}: "
                    "choose another `out`"
                )
        return saved
    if settings is None:
        raise UserError(f"{path.parent}: no cache of latents: create one with `rvedit prepare cache`")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(settings))
    return settings


def fingerprint(parameters: Iterable[tuple[str, Tensor]]) -> str:
    """Return a hash of parameter names and values."""
    digest = hashlib.sha256()
    for name, tensor in parameters:
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]

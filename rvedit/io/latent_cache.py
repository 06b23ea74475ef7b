"""Cache of VAE latents and text encoder states, so that training does not encode them in every epoch.

A folder of safetensors shards, each with a JSON list of its keys. A shard holds a group of the manifest's
rows, whichever of them can be read, and is named by all of their keys: the files are the same for any number
of processes and interruptions. Rows that cannot be read are listed beside the shard.

The frames for the multimodal LLM, and reference images, are stored with the latents, so that training does
not need the files. Text states are keyed by a hash of the text, so that a changed caption is encoded again. A
JSON file records the settings; a cache made with another VAE, text encoder, size or length is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float, UInt8
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rvedit.io.errors import UserError
from rvedit.io.frames import Frames, Picture
from rvedit.io.manifest import Failure, write_failures, write_json
from rvedit.io.records import ClipShape, Triplet
from rvedit.io.temporary import atomic_path

SETTINGS = "cache.json"
TEXT_SETTINGS = "texts.json"
_CLIP_TENSORS = ("source/latents", "source/seen", "target/latents", "target/seen")
_PICTURE = "reference_image"
_FAILURES = ".failures.jsonl"
Entry = Mapping[str, Tensor]
"""Tensors of a key, by name."""
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
        self.keys_of: dict[Path, list[str]] = {}
        """Keys of each shard."""
        self.path_of: dict[str, Path] = {}
        """Shard of each key."""
        for listing in sorted(folder.glob(f"{prefix}-*.json")):
            shard = listing.with_suffix(".safetensors")
            with suppress(FileNotFoundError):  # another process has replaced it by a larger one
                keys = json.loads(listing.read_text(encoding="utf-8"))
                if shard.is_file():
                    self._add(shard, keys)
        self.failed_of: dict[Path, set[str]] = {}
        """Keys of each shard's group that could not be read."""
        for path in folder.glob(f"{prefix}-*{_FAILURES}"):
            with suppress(FileNotFoundError):  # another process has read the rows again
                shard = path.with_name(path.name.replace(_FAILURES, ".safetensors"))
                with path.open(encoding="utf-8") as rows:
                    self.failed_of[shard] = {Failure(**json.loads(row)).key for row in rows}

    def __contains__(self, key: str) -> bool:
        return key in self.path_of

    def shard_of(self, group: Sequence[str]) -> Path:
        """Return the path of the shard for a group of keys, whichever of them it holds."""
        digest = hashlib.sha256("\n".join(group).encode()).hexdigest()[:16]
        return self.folder / f"{self.prefix}-{digest}.safetensors"

    def has_group(self, group: Sequence[str]) -> bool:
        """Return whether the shard for a group of keys holds all of them."""
        return set(group) <= set(self.keys_of.get(self.shard_of(group), ()))

    def is_done(self, group: Sequence[str]) -> bool:
        """Return whether each key of a group is in its shard or could not be read."""
        shard = self.shard_of(group)
        return set(group) <= {*self.keys_of.get(shard, ()), *self.failed_of.get(shard, ())}

    def read_tensors(self, key: str, names: Sequence[str]) -> list[Tensor]:
        """Return the named tensors of a key."""
        with safe_open(self.path_of[key], "pt") as shard:
            return [shard.get_tensor(f"{key}/{name}") for name in names]

    def write_shard(self, shard: Path, entries: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Write the named tensors of keys, with floats in the cache's dtype."""
        tensors = {
            f"{key}/{name}": (x.to(self.dtype) if x.is_floating_point() else x).contiguous()
            for key, parts in entries.items()
            for name, x in parts.items()
        }
        with atomic_path(shard) as temporary:
            save_file(tensors, temporary)
        write_json(shard.with_suffix(".json"), list(entries))  # last, so that listed keys exist
        self._add(shard, list(entries))

    def remove_superseded(self, groups: Sequence[Sequence[str]]) -> None:
        """Remove shards all of whose keys are in these groups, once each group is done.

        Such shards are of a manifest that had fewer rows, or others.
        """
        if not all(map(self.is_done, groups)):
            return
        shards, keys = set(map(self.shard_of, groups)), {key for group in groups for key in group}
        for shard in {*self.keys_of, *self.failed_of} - shards:
            if keys.issuperset([*self.keys_of.get(shard, ()), *self.failed_of.get(shard, ())]):
                for path in (shard.with_suffix(".json"), shard.with_suffix(_FAILURES), shard):
                    path.unlink(missing_ok=True)

    def _add(self, shard: Path, keys: list[str]) -> None:
        self.keys_of[shard] = keys
        self.path_of |= dict.fromkeys(keys, shard)

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
        """Return the keys of triplets that `rvedit prepare cache` could not read."""
        return set().union(*self.failed_of.values()) - set(self.path_of)

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

    def write_group(
        self, group: Sequence[str], entries: Mapping[str, Entry], failures: Sequence[Failure]
    ) -> None:
        """Write the shard for a group of triplets, and the list of those that cannot be read.

        `entries` are new; others of the group that are in the cache are copied. Raises UserError if these
        cannot be read.
        """
        shard = self.shard_of(group)
        # Before the shard's list of keys: a group with all its keys is not looked at again.
        if failures:
            write_failures(shard, failures)
        else:
            shard.with_suffix(_FAILURES).unlink(missing_ok=True)
        keys = [key for key in group if key in entries or key in self]
        if keys != self.keys_of.get(shard, []):
            self.write_shard(shard, {key: entries.get(key) or self._read_entry(key) for key in keys})

    def _read_entry(self, key: str) -> Entry:
        """Return all tensors of a triplet."""
        path = self.path_of[key]
        try:
            with safe_open(path, "pt") as shard:
                stored = set(shard.keys())
                names = [name for name in (*_CLIP_TENSORS, _PICTURE) if f"{key}/{name}" in stored]
                return {name: shard.get_tensor(f"{key}/{name}") for name in names}
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: cannot be read ({error}): delete it, and run this again") from None


def as_entry(clips: Sequence[CachedClip], picture: Picture | None) -> Entry:
    """Return the tensors to store of a triplet: source and target, and its reference image if it has one."""
    tensors = [x for clip in clips for x in (clip.latents, torch.from_numpy(clip.mllm_frames))]
    entry = dict(zip(_CLIP_TENSORS, tensors, strict=True))
    return entry if picture is None else {**entry, _PICTURE: torch.from_numpy(picture)}


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
        return super().__contains__(text_key(text))

    def require(self, texts: Iterable[str], text_encoder: str) -> None:
        """Raise UserError if texts are missing, or the states come from another text encoder."""
        missing = [text for text in texts if text not in self]
        self.check("texts", "text encoder", text_encoder == self.settings.text_encoder, missing)

    def read(self, text: str) -> Float[Tensor, "n c"]:
        """Return the states of a text, without padding."""
        return self.read_tensors(text_key(text), ["states"])[0]

    def write_group(self, states: Mapping[str, Float[Tensor, "n c"]]) -> None:
        """Write the shard for a group of texts."""
        entries = {text_key(text): {"states": tensor} for text, tensor in states.items()}
        self.write_shard(self.shard_of(list(entries)), entries)


def texts_of(triplets: Sequence[Triplet]) -> list[str]:
    """Return all texts to encode, each once: instructions, captions and the empty prompt (text dropout)."""
    texts = [text for t in triplets for text in (t.instruction, t.target_caption) if text]
    return list(dict.fromkeys(["", *texts]))


def text_key(text: str) -> str:
    """Return the key of a text in the cache."""
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
    write_json(path, asdict(settings), overwrite=False)
    return _read_or_write_settings(path, kind, settings)  # another process may have been first


def fingerprint(parameters: Iterable[tuple[str, Tensor]]) -> str:
    """Return a hash of parameter names and values."""
    digest = hashlib.sha256()
    for name, tensor in parameters:
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]

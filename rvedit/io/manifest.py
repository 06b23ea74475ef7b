"""Manifests: triplets as a parquet file, with a readable JSONL export beside it.

`write_manifest("triplets/manifest.parquet", rows)` writes both, with the same rows; either can be read back.
Rows that did not become triplets are in `manifest.failures.jsonl` beside them, with the reasons.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from rvedit.io.errors import UserError
from rvedit.io.records import Category, Triplet
from rvedit.io.tables import normalize, numbered_lines
from rvedit.io.temporary import atomic_path, temporary_sibling

_FIELDS = tuple(field.name for field in dataclasses.fields(Triplet))
_REQUIRED = tuple(f.name for f in dataclasses.fields(Triplet) if f.default is dataclasses.MISSING)
_INTEGERS = ("num_frames", "width", "height")
_NUMBERS = (*_INTEGERS, "fps")
_TEXTS = ("id", "dataset", "root", "source", "target", "instruction")
_ROOT = os.path.abspath(os.sep)


@dataclasses.dataclass(frozen=True)
class Failure:
    """A dataset row that did not become a triplet, and why."""

    dataset: str
    reason: str
    """Short text, equal for equal reasons, by which failures are counted."""
    detail: str
    file: str
    """The metadata file."""
    row: int
    """Row in that file, from 1."""
    id: str | None = None
    dataset_category: str | None = None
    source: str | None = None
    target: str | None = None

    @property
    def key(self) -> str:
        """Key of the triplet that the row would have become."""
        return f"{self.dataset}/{self.id}"


def prepare_folder(folder: Path) -> None:
    """Create a folder; raises UserError if it cannot be written to."""
    probe = temporary_sibling(folder / "probe")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to ({error.strerror}): choose another `out`") from None


@lru_cache(maxsize=1024)
def relative_root(folder: str | Path, manifest_folder: str | Path) -> str:
    """Return the path of `folder` for a manifest in `manifest_folder`.

    Relative, so that both can be moved together, unless they share only the file system's root.
    """
    absolute, start = os.path.abspath(folder), os.path.realpath(manifest_folder)
    try:
        shared = os.path.commonpath([absolute, start])
    except ValueError:  # on two drives
        return absolute
    return absolute if shared == _ROOT else Path(os.path.relpath(absolute, start)).as_posix()


def write_failures(path: Path, failures: Iterable[Failure]) -> None:
    """Write `manifest.failures.jsonl` beside the manifest `path`."""
    write_rows(failures_path(path), map(dataclasses.asdict, failures))


def failures_path(manifest: Path) -> Path:
    """Return the path of a manifest's list of failures."""
    return manifest.with_suffix(".failures.jsonl")


def write_manifest(path: Path, triplets: Sequence[Triplet]) -> None:
    """Write `path` (parquet) and its JSONL export, each atomically."""
    import pyarrow as arrow
    from pyarrow import parquet

    rows = [dataclasses.asdict(triplet) for triplet in triplets]
    kinds = dict.fromkeys(_FIELDS, arrow.string()) | dict.fromkeys(_INTEGERS, arrow.int64())
    kinds["fps"] = arrow.float64()
    table = arrow.Table.from_pylist(rows, schema=arrow.schema(kinds))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        parquet.write_table(table, temporary)
    write_rows(path.with_suffix(".jsonl"), rows)


def read_manifest(path: Path) -> list[Triplet]:
    """Read a parquet manifest, its JSONL export, or the folder of one.

    Raises UserError with the row and the field.
    """
    if path.is_dir():
        path = path / "manifest.parquet"
    if not path.is_file():
        raise UserError(f"{path}: no such manifest: create one with `rvedit prepare`")
    rows = read_rows(path) if path.suffix.lower() == ".jsonl" else _read_parquet(path)
    triplets = [_as_triplet(path, number, row) for number, row in enumerate(rows, start=1)]
    if not triplets:
        raise UserError(f"{path}: the manifest is empty: create it again with `rvedit prepare`")
    return triplets


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines atomically."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_json(path: Path, value: dict[str, Any] | list[Any], overwrite: bool = True) -> None:
    """Write one indented JSON value atomically; without `overwrite`, unless the file exists."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n", overwrite)


def write_text(path: Path, text: str, overwrite: bool = True) -> None:
    """Write a text file atomically; without `overwrite`, unless it exists."""
    with atomic_path(path, overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines; raises UserError with the line that is not a JSON object."""
    rows = []
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not JSON: {error.msg}") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: not a JSON object but a {type(row).__name__}")
        rows.append(row)
    return rows


def rank(seed: int, key: str) -> bytes:
    """Return a triplet's rank in a random order that does not depend on other triplets."""
    return hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=16).digest()


def clip_path(manifest: Path, triplet: Triplet, side: str) -> Path:
    """Return the path of a manifest row's source, target, reference image or mask (`side`)."""
    folder = manifest if manifest.is_dir() else manifest.parent
    return folder / triplet.root / str(getattr(triplet, side))


def _as_triplet(path: Path, number: int, row: dict[str, Any]) -> Triplet:
    missing = [name for name in _REQUIRED if name not in row]
    if missing:
        raise UserError(
            f"{path}, row {number}: the field {missing[0]} is missing: write it with `rvedit prepare`"
        )
    for names, kind, article in ((_TEXTS, str, "text"), (_NUMBERS, (int, float), "a number")):
        if wrong := [name for name in names if not isinstance(row[name], kind)]:
            raise UserError(f"{path}, row {number}: {wrong[0]} is {row[wrong[0]]!r}, not {article}")
    paths = ["root", "source", "target"]
    for name in ("reference_image", "mask"):
        if row.get(name) is not None:
            paths.append(name)
            if not isinstance(row[name], str):
                raise UserError(f"{path}, row {number}: {name} is {row[name]!r}, not text")
    row |= {name: normalize(row[name]) for name in paths}
    category = row["category"]
    try:
        row["category"] = None if category is None else Category(category)
    except ValueError:
        raise UserError(
            f"{path}, row {number}: category is {category!r}: choose one of {', '.join(Category)}, or null"
        ) from None
    if not row["instruction"].strip():
        raise UserError(
            f"{path}, row {number} ({row['id']}): the instruction is empty: remove the row or fill it in"
        )
    values: dict[str, Any] = {name: row.get(name) for name in _FIELDS}
    return Triplet(**values)


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    from pyarrow import ArrowInvalid, parquet

    try:
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except (ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not a parquet file: {str(error).splitlines()[0]}") from None
    return rows

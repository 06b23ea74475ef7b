"""Lists of clips to edit or to judge: a benchmark's CSV, a manifest, or the list of a batch edit."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import yaml

from rvedit.io.errors import UserError
from rvedit.io.manifest import clip_path, read_manifest, read_rows, write_rows
from rvedit.io.records import Category
from rvedit.io.tables import BadRow, normalize, read_table

BATCH_MANIFEST = "edits.jsonl"
"""Name of the list that a batch edit writes beside its clips: every item and the path of its edit."""
OPENVE_CATEGORIES: Mapping[str, Category | None] = {
    "global_style": Category.STYLE,
    "local_change": Category.CHANGE,
    "local_remove": Category.REMOVE,
    "local_add": Category.ADD,
    "background_change": None,
    "subtitles": None,
    "camera": None,
    "creative": None,
}
"""OpenVE's categories, mapped to the paper's; None where the paper has no such category."""
_CATEGORIES = {**OPENVE_CATEGORIES, **{category.value: category for category in Category}}
_REQUIRED_COLUMNS = ("edited_type", "prompt", "original_video")
_EDITED_COLUMN = "edited_result_path"
_OPTIONAL_COLUMNS = (_EDITED_COLUMN, "description", "ref_image")
_OPTIONAL_TEXTS = (
    "id", "category", "edited_type", "target", "description", "edited", "reference_image"
)  # fmt: skip
_BENCH_FOLDER = "OpenVE-Bench"
_CLIP_SUFFIXES = {".mp4", ".mov", ".webm", ".mkv", ".avi", ".m4v", ".gif", ".png", ".jpg", ".webp"}
_ID_SUFFIX, _ANY_ID = re.compile(r"_id\d+_edited$"), "_id*_edited"
_Listing = dict[str, list[Path]]
_NOT_EDITS = re.compile(r"^concat_|_concat$|_compare$|^src_video$|^src_mask$")


@dataclass(frozen=True)
class BenchItem:
    """A source clip and the instruction to edit it by."""

    index: int
    """Row in the list, from 0."""
    id: str
    """Unique within the list."""
    instruction: str
    category: Category | None
    """The paper's category, from the list: file names can be wrong."""
    dataset_category: str
    """The list's own name of the category."""
    source: Path
    target: Path | None = None
    """Ground-truth edit, if there is one."""
    description: str | None = None
    """Caption of the target, if there is one."""
    edited: Path | None = None
    """Path of the edited clip, as the list spells it."""
    reference_image: Path | None = None
    """Picture of what the instruction refers to, if there is one."""
    list_folder: Path | None = None
    """Folder of the list, if the paths of the edits may be relative to it."""


def read_bench(path: Path) -> list[BenchItem]:
    """Read a CSV with OpenVE-Bench's columns, RefVIE-Bench's YAML, a manifest, a batch's list, or a folder.

    Raises UserError with the file, the row and the column.
    """
    if path.is_dir():
        names = (BATCH_MANIFEST, "manifest.parquet", "benchmark_videos.csv", "refvie_bench.yaml")
        found = [path / name for name in names if (path / name).is_file()]
        if not found:
            raise UserError(f"{path}: holds none of {', '.join(names)}: give the path of the list")
        path = found[0]
    if not path.is_file():
        raise UserError(f"{path}: no such file: give the CSV of a benchmark, or a manifest")
    readers = {
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".jsonl": _read_jsonl,
        ".parquet": _read_triplets,
        ".yaml": _read_refvie,
        ".yml": _read_refvie,
    }
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise UserError(f"{path}: not a list of clips: give a .csv, .tsv, .jsonl, .parquet or .yaml")
    items = readers[suffix](path)
    if not items:
        raise UserError(f"{path}: holds no rows: give another list")
    return _with_unique_ids(items)


def write_batch(folder: Path, items: Sequence[BenchItem]) -> None:
    """Write the list of a batch edit; paths inside the folder are written relative to it."""
    base = folder.resolve()

    def relative(path: Path | None) -> str | None:
        if path is None:
            return None
        path = path.resolve()
        return (path.relative_to(base) if path.is_relative_to(base) else path).as_posix()

    rows = [
        {
            "id": item.id,
            "instruction": item.instruction,
            "category": item.category.value if item.category else None,
            "edited_type": item.dataset_category,
            "original_video": relative(item.source),
            "target": relative(item.target),
            "description": item.description,
            "edited": relative(item.edited),
            "reference_image": relative(item.reference_image),
        }
        for item in items
    ]
    write_rows(folder / BATCH_MANIFEST, rows)


def resolve_edits(items: Sequence[BenchItem], folder: Path) -> dict[str, Path]:
    """Return the edited clip of each item by id, found by the usual names; items without one are left out.

    Tried in order: the path in the list; `<stem>_edited`, `<stem>`, the same in the category's folder,
    `<stem>_id<N>_edited`, `<row>/generate`, `<row>_edited` with three digits, and the names that Kiwi-Edit
    gives for RefVIE-Bench. Comparisons, sources and masks
    are skipped.

    Raises UserError if two clips match one item, or one clip matches two items.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of edited clips")
    list_clips = cache(_list_clips)  # each folder is listed once
    owners: dict[Path, str] = {}
    for item in items:
        path = _resolve(item, folder, list_clips)
        if path is None:
            continue
        if path in owners:
            raise UserError(
                f"{path}: is the edit of two items, {owners[path]} and {item.id}: give the path of "
                f"each edit in the column {_EDITED_COLUMN}"
            )
        owners[path] = item.id
    return {owner: path for path, owner in owners.items()}


def _resolve(item: BenchItem, folder: Path, list_clips: Callable[[Path], _Listing]) -> Path | None:
    if item.edited is not None:
        named = [folder / item.edited, folder / item.edited.name]
        named += [item.list_folder / item.edited] if item.list_folder else []
        if existing := next(filter(os.path.isfile, named), None):
            return existing
    stem, index = item.source.stem, item.index
    category_names = {item.dataset_category, item.category and item.category.value}
    category_folders = [folder / name for name in category_names if name]
    for names in (
        [folder / f"{stem}_edited"],
        [folder / stem],
        [parent / name for name in (f"{stem}_edited", stem) for parent in category_folders],
        [folder / f"{stem}{_ANY_ID}"],
        [folder / str(index) / "generate"],
        [folder / f"{index:03d}_edited"],
        # Kiwi-Edit's names for RefVIE-Bench
        [folder / f"{index}_{item.instruction[:10]}_{stem}"] if item.reference_image else [],
    ):
        named = [clip for name in names for clip in list_clips(name.parent).get(name.name, ())]
        clips = [clip for clip in named if not clip.samefile(item.source)]
        if len(clips) > 1:
            raise UserError(
                f"{folder}: {clips[0].name} and {clips[1].name} both could be the edit of {item.id}: keep "
                f"one, or give its path in the column {_EDITED_COLUMN}"
            )
        if clips:
            return clips[0]
    return None


def _list_clips(folder: Path) -> _Listing:
    """Return a folder's clips by stem; those named `<stem>_id<N>_edited` also under `<stem>_id*_edited`."""
    clips: _Listing = {}
    if not os.path.isdir(folder):
        return clips
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in _CLIP_SUFFIXES and not _NOT_EDITS.search(path.stem) and path.is_file():
            for name in {path.stem, _ID_SUFFIX.sub(_ANY_ID, path.stem)}:
                clips.setdefault(name, []).append(path)
    return clips


def _read_csv(path: Path) -> list[BenchItem]:
    items = []
    for row in read_table(path, _REQUIRED_COLUMNS, _OPTIONAL_COLUMNS):
        if isinstance(row, BadRow):
            raise UserError(f"{path}, row {row.number}: {row.reason}")
        number, values = row
        texts = {name: value.strip() for name, value in values.items()}
        if empty := [name for name in _REQUIRED_COLUMNS if not texts[name]]:
            raise UserError(f"{path}, row {number}: {empty[0]} is empty: remove the row or fill it in")
        category = texts["edited_type"]
        source = _find_source(path.parent, texts["original_video"])
        items.append(
            BenchItem(
                number - 1,
                source.stem,
                values["prompt"],
                _CATEGORIES.get(category),
                category,
                source,
                description=texts["description"] or None,
                edited=Path(normalize(texts[_EDITED_COLUMN])) if texts[_EDITED_COLUMN] else None,
                reference_image=_find_source(path.parent, texts["ref_image"]) if texts["ref_image"] else None,
                list_folder=path.parent,
            )
        )
    return items


def _read_refvie(path: Path) -> list[BenchItem]:
    """Read RefVIE-Bench's list: edits with a reference image, of a subject or a background."""
    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
    names = ("src_video", "instruction", "ref_img", "edit_type")
    items = []
    for index, row in enumerate(rows if isinstance(rows, list) else [rows]):
        values = [row.get(name) if isinstance(row, dict) else None for name in names]
        if wrong := [n for n, value in zip(names, values, strict=True) if not str(value or "").strip()]:
            raise UserError(f"{path}, item {index + 1}: {wrong[0]} is missing: needs {', '.join(names)}")
        video, instruction, picture, kind = map(str, values)
        source = _find_source(path.parent, video)
        items.append(
            BenchItem(
                index,
                source.stem,
                instruction,
                None,
                kind,
                source,
                reference_image=_find_source(path.parent, picture),
                list_folder=path.parent,
            )
        )
    return items


def _find_source(folder: Path, name: str) -> Path:
    """Return the path of a source clip that the list names with or without the benchmark's own folder."""
    name = normalize(name)
    short = name.removeprefix(f"{_BENCH_FOLDER}/")
    candidates = [folder / short, folder / name, folder.parent / name, Path(name)]
    # Unlike Path.is_file, os.path.isfile is false for a text that is too long for a name.
    return next(filter(os.path.isfile, candidates), candidates[0])


def _read_jsonl(path: Path) -> list[BenchItem]:
    """Read the list of a batch edit, or else a manifest."""
    rows = read_rows(path)
    if not rows or "original_video" not in rows[0]:
        return _read_triplets(path)
    items = []
    for index, row in enumerate(rows):
        for name in ("instruction", "original_video", *_OPTIONAL_TEXTS):
            value = row.get(name)
            is_optional = name in _OPTIONAL_TEXTS and not value
            if not is_optional and (not isinstance(value, str) or not value.strip()):
                raise UserError(f"{path}, row {index + 1}: {name} is not text: remove the row or fill it in")
        if row.get("category") and _CATEGORIES.get(row["category"]) is None:
            names = ", ".join(Category)
            raise UserError(
                f"{path}, row {index + 1}: category is {row['category']!r}: choose {names} or null"
            )
        source = _find_source(path.parent, row["original_video"])
        dataset_category = row.get("edited_type") or row.get("category") or ""
        items.append(
            BenchItem(
                index,
                row.get("id") or source.stem,
                row["instruction"],
                _CATEGORIES.get(row.get("category") or dataset_category),
                dataset_category,
                source,
                path.parent / normalize(row["target"]) if row.get("target") else None,
                row.get("description"),
                # The name alone: a path into another folder could be another editor's clip.
                Path(Path(normalize(row["edited"])).name) if row.get("edited") else None,
                _find_source(path.parent, row["reference_image"]) if row.get("reference_image") else None,
            )
        )
    return items


def _read_triplets(path: Path) -> list[BenchItem]:
    return [
        BenchItem(
            index,
            triplet.id,
            triplet.instruction,
            triplet.category,
            triplet.dataset_category or "",
            clip_path(path, triplet, "source"),
            clip_path(path, triplet, "target"),
            triplet.target_caption,
            reference_image=clip_path(path, triplet, "reference_image") if triplet.reference_image else None,
        )
        for index, triplet in enumerate(read_manifest(path))
    ]


def _with_unique_ids(items: list[BenchItem]) -> list[BenchItem]:
    """Make ids unique: from the second edit of a clip on, the row number is added."""
    seen: set[str] = set()
    for position, item in enumerate(items):
        if item.id in seen:
            items[position] = replace(item, id=f"{item.id}_row{item.index}")
        seen.add(items[position].id)
    return items

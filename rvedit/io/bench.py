"""What is edited in bulk and judged: a benchmark's CSV, a manifest, or what `rvedit edit --batch` leaves."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath

from rvedit.io.errors import UserError
from rvedit.io.manifest import clip_path, read_manifest, read_rows, write_rows
from rvedit.io.records import Category

BATCH_MANIFEST = "edits.jsonl"
"""What a batch leaves beside its clips: every item and the clip that is, or will be, its edit."""
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
"""OpenVE's names of its kinds of edit, and the paper's categories that they belong to."""
_COLUMNS = ("edited_type", "prompt", "original_video")
_EDITED = "edited_result_path"
_FOLDER_OF_BENCH = "OpenVE-Bench"
_OURS = ", ".join(category.value for category in Category)
_CLIPS = {".mp4", ".mov", ".webm", ".mkv", ".avi", ".m4v", ".gif", ".png", ".jpg", ".webp"}
_ID, _ANY_ID = re.compile(r"_id\d+_edited$"), "_id*_edited"
_Listing = dict[str, list[Path]]
_NOT_EDITS = re.compile(r"^concat_|_concat$|_compare$|^src_video$|^src_mask$")


@dataclass(frozen=True)
class BenchItem:
    """A clip and what is asked of it."""

    index: int
    """Its row, from 0."""
    id: str
    """Unique within the list."""
    instruction: str
    category: Category | None
    """Ours; from the list alone, since file names lie."""
    word: str
    """The list's own word for the category."""
    source: Path
    target: Path | None = None
    """The true edit, where it is known."""
    description: str | None = None
    """Words for the true edit, where there are any."""
    edited: Path | None = None
    """The edit, as the list spells it."""
    list_folder: Path | None = None
    """Where the list lies, if the edits that it names may lie beside it."""


def read_bench(path: Path) -> list[BenchItem]:
    """Read a CSV in OpenVE-Bench's columns, a manifest (parquet or JSONL), or a batch's list.

    Raises UserError with the file, the row and the column.
    """
    if path.is_dir():
        names = (BATCH_MANIFEST, "manifest.parquet", "benchmark_videos.csv")
        found = [path / name for name in names if (path / name).is_file()]
        if not found:
            raise UserError(f"{path}: holds none of {', '.join(names)}: name the list of its clips")
        path = found[0]
    if not path.is_file():
        raise UserError(f"{path}: no such file: give a CSV of a benchmark, or a manifest")
    if path.suffix == ".csv":
        items = _read_csv(path)
    elif path.suffix == ".jsonl" and _is_batch(path):
        items = _read_batch(path)
    elif path.suffix in (".jsonl", ".parquet"):
        items = _read_triplets(path)
    else:
        raise UserError(f"{path}: not a list of clips: give a .csv, .jsonl or .parquet")
    if not items:
        raise UserError(f"{path}: holds no rows: there is nothing to do")
    return _with_unique_ids(items)


def write_batch(folder: Path, items: Sequence[BenchItem]) -> None:
    """Write the list of a batch; clips in the folder are named relative to it."""
    home = folder.resolve()

    def shown(path: Path | None) -> str | None:
        if path is None:
            return None
        whole = path.resolve()
        return whole.relative_to(home).as_posix() if whole.is_relative_to(home) else whole.as_posix()

    rows = [
        {
            "id": item.id,
            "instruction": item.instruction,
            "category": item.category.value if item.category else None,
            "edited_type": item.word,
            "original_video": shown(item.source),
            "target": shown(item.target),
            "description": item.description,
            "edited": shown(item.edited),
        }
        for item in items
    ]
    write_rows(folder / BATCH_MANIFEST, rows)


def resolve_edits(items: Sequence[BenchItem], folder: Path) -> dict[str, Path]:
    """The edited clip of each item, by id, as editors name them; items without one are left out.

    In order: the path in the list; `<stem>_edited`, `<stem>`, the same under the category's folder,
    `<stem>_id<N>_edited`, `<row>/generate`, `<row>_edited` with three digits. Comparisons, sources and masks
    are passed over.

    Raises UserError where two clips claim an item, or an item's clip is another one's too.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of edited clips")
    clips_in = cache(_clips_in)  # a folder is listed once, not for every item
    found: dict[str, Path] = {}
    owners: dict[Path, str] = {}
    for item in items:
        path = _resolve(item, folder, clips_in)
        if path is None:
            continue
        if path in owners:
            raise UserError(
                f"{path}: is the edit of two items, {owners[path]} and {item.id}: name each one's in a "
                f"column {_EDITED}"
            )
        owners[path] = item.id
        found[item.id] = path
    return found


def _resolve(item: BenchItem, folder: Path, clips_in: Callable[[Path], _Listing]) -> Path | None:
    if item.edited is not None:
        named = [folder / item.edited, folder / item.edited.name]
        named += [item.list_folder / item.edited] if item.list_folder else []
        there = next((path for path in named if path.is_file()), None)
        if there:
            return there
    stem, index = item.source.stem, item.index
    inside = [folder / word for word in {item.word, item.category and item.category.value} if word]
    for names in (
        [folder / f"{stem}_edited"],
        [folder / stem],
        [home / name for name in (f"{stem}_edited", stem) for home in inside],
        [folder / f"{stem}{_ANY_ID}"],
        [folder / str(index) / "generate"],
        [folder / f"{index:03d}_edited"],
    ):
        named = [clip for name in names for clip in clips_in(name.parent).get(name.name, ())]
        clips = [clip for clip in named if not clip.samefile(item.source)]
        if len(clips) > 1:
            raise UserError(
                f"{folder}: {clips[0].name} and {clips[1].name} both could be the edit of {item.id}: keep "
                f"one, or name it in a column {_EDITED}"
            )
        if clips:
            return clips[0]
    return None


def _clips_in(folder: Path) -> _Listing:
    """The clips of a folder by their names without ending, and those with an id by the name without it."""
    clips: _Listing = {}
    if not folder.is_dir():
        return clips
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in _CLIPS and not _NOT_EDITS.search(path.stem) and path.is_file():
            for name in {path.stem, _ID.sub(_ANY_ID, path.stem)}:
                clips.setdefault(name, []).append(path)
    return clips


def _read_csv(path: Path) -> list[BenchItem]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise UserError(f"{path}: has no column {missing[0]}: a benchmark has {', '.join(_COLUMNS)}")
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8: {error}: save it as such") from None
    items = []
    for index, row in enumerate(rows):
        empty = [name for name in _COLUMNS if not (row[name] or "").strip()]
        if empty:
            raise UserError(f"{path}, row {index + 1}: {empty[0]} is empty: remove the row or fill it in")
        word, source = row["edited_type"].strip(), _clip_of_bench(path.parent, row["original_video"].strip())
        edited = (row.get(_EDITED) or "").strip()
        items.append(
            BenchItem(
                index,
                source.stem,
                row["prompt"],
                _category(word),
                word,
                source,
                description=(row.get("description") or "").strip() or None,
                edited=Path(edited) if edited else None,
                list_folder=path.parent,
            )
        )
    return items


def _clip_of_bench(folder: Path, name: str) -> Path:
    """A clip as the CSV names it, which it does with and without the benchmark's own folder."""
    parts = PurePosixPath(name).parts
    short = Path(*parts[1:]) if len(parts) > 1 and parts[0] == _FOLDER_OF_BENCH else Path(*parts)
    candidates = [folder / short, folder / name, folder.parent / name, Path(name)]
    return next((path for path in candidates if path.is_file()), folder / short)


def _category(word: str) -> Category | None:
    """Ours for a list's word: OpenVE's, or our own."""
    if word in OPENVE_CATEGORIES:
        return OPENVE_CATEGORIES[word]
    return Category(word) if word in {category.value for category in Category} else None


def _is_batch(path: Path) -> bool:
    """Told by the first row, so that a long manifest is not read twice."""
    with path.open(encoding="utf-8", errors="replace") as file:
        try:
            return "original_video" in json.loads(file.readline())
        except (ValueError, TypeError):  # whoever reads the whole says what is wrong
            return False


def _read_batch(path: Path) -> list[BenchItem]:
    items = []
    for index, row in enumerate(read_rows(path)):
        wrong = [
            n for n in ("instruction", "original_video") if not isinstance(row.get(n), str) or not row[n]
        ]
        if wrong:
            raise UserError(f"{path}, row {index + 1}: {wrong[0]} is no text: remove the row or fill it in")
        if row.get("category") and _category(row["category"]) is None:
            raise UserError(
                f"{path}, row {index + 1}: category is {row['category']!r}: choose {_OURS} or null"
            )
        source = path.parent / row["original_video"]
        word = row.get("edited_type") or row.get("category") or ""
        category = _category(row.get("category") or word)
        items.append(
            BenchItem(
                index,
                row.get("id") or source.stem,
                row["instruction"],
                category,
                word,
                source,
                path.parent / row["target"] if row.get("target") else None,
                row.get("description"),
                # Its name alone: in another folder it would be another editor's.
                Path(Path(row["edited"]).name) if row.get("edited") else None,
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
        )
        for index, triplet in enumerate(read_manifest(path))
    ]


def _with_unique_ids(items: list[BenchItem]) -> list[BenchItem]:
    """One clip may be asked for several edits: its further ones get their row's number."""
    seen: set[str] = set()
    unique = []
    for item in items:
        if item.id in seen:
            item = replace(item, id=f"{item.id}_row{item.index}")
        seen.add(item.id)
        unique.append(item)
    return unique

"""The job of `rvedit analyze gallery`: show the edits of several methods side by side, by category."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rvedit.analysis.gallery_figure import GalleryItem, plot_gallery, side_by_side
from rvedit.analysis.naming import named_folders
from rvedit.io.bench import BenchItem, read_bench, resolve_edits
from rvedit.io.errors import UserError
from rvedit.io.manifest import prepare_folder
from rvedit.io.records import CATEGORY_TITLES
from rvedit.io.video import probe, write_like

SOURCE, TRUE_EDIT = "source", "true edit"


@dataclass(frozen=True)
class GalleryConfig:
    """Which edits to show, of which methods."""

    results: tuple[str, ...]
    """Folders of edits, one per method, as FOLDER or NAME=FOLDER."""
    out: Path
    bench: Path | None = None
    """The list of items; None reads the list that `rvedit edit --batch` wrote to the first folder."""
    items: tuple[str, ...] = ()
    """Ids of items; empty for the first ones of each category."""
    per_category: int = 2
    columns: int = 5
    """Number of frames per clip."""
    video: bool = True
    """Also write a side-by-side clip of each item."""


@dataclass(frozen=True)
class GalleryReport:
    """The files written."""

    folder: Path
    figures: tuple[Path, ...]
    clips: tuple[Path, ...]
    items: int


def analyze_gallery(
    config: GalleryConfig, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> GalleryReport:
    """Write a figure per category, of items that all methods have edited, and a clip per item.

    Raises UserError if there is no such item, or if one of `config.items` is missing.
    """
    methods = _methods(config.results)
    items = read_bench(config.bench or next(iter(methods.values())))
    edits = {name: resolve_edits(items, folder) for name, folder in methods.items()}
    groups = _select(config, items, edits)
    prepare_folder(config.out)
    figures: list[Path] = []
    clips: list[Path] = []
    num_items = sum(len(group) for group in groups.values())
    total = num_items * (1 + config.video)
    done = 0
    for category, group in groups.items():
        shown = [_with_clips(item, edits) for item in group]
        title = CATEGORY_TITLES.get(category, category)
        figures += plot_gallery(shown, config.out / f"gallery_{_file_name(category)}", config.columns, title)
        done += len(shown)
        on_progress(done + len(clips), total)
        for item in shown if config.video else ():
            path = config.out / f"{_file_name(category)}_{_file_name(item.id)}.mp4"
            write_like(path, probe(item.clips[SOURCE]), side_by_side(item))
            clips.append(path)
            on_progress(done + len(clips), total)
    return GalleryReport(config.out, tuple(figures), tuple(clips), num_items)


def _methods(results: tuple[str, ...]) -> dict[str, Path]:
    """Return name -> folder, in the order of `results`."""
    methods = named_folders(results)
    for name in (SOURCE, TRUE_EDIT):
        if name in methods:
            raise UserError(f"{methods[name]}: a method cannot be named {name}: write NAME=FOLDER")
    return methods


def _select(
    config: GalleryConfig, items: list[BenchItem], edits: dict[str, dict[str, Path]]
) -> dict[str, list[BenchItem]]:
    """Return the items to show by category; all methods have edited them."""
    shared = [item for item in items if all(item.id in clips for clips in edits.values())]
    if not shared:
        raise UserError(f"no item was edited by all of {', '.join(edits)}: is `bench` the right list?")
    if config.items:
        by_id = {item.id: item for item in shared}
        unknown = next((name for name in config.items if name not in by_id), None)
        if unknown:
            raise UserError(f"`item` {unknown}: no such item among those of all methods, e.g. {shared[0].id}")
        shared = [by_id[name] for name in config.items]
    groups: dict[str, list[BenchItem]] = defaultdict(list)
    for item in shared:
        group = groups[item.category.value if item.category else item.dataset_category or "edits"]
        if config.items or len(group) < config.per_category:
            group.append(item)
    return groups


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]", "_", text)


def _with_clips(item: BenchItem, edits: dict[str, dict[str, Path]]) -> GalleryItem:
    clips = {SOURCE: item.source, **{name: paths[item.id] for name, paths in edits.items()}}
    if item.target is not None:
        clips[TRUE_EDIT] = item.target
    return GalleryItem(item.id, item.instruction, clips)

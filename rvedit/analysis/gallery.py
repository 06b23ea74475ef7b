"""`rvedit analyze gallery`: the edits of several methods beside each other, by category."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rvedit.analysis.gallery_figure import GalleryFigure, plot_gallery, side_by_side
from rvedit.analysis.naming import split_name
from rvedit.io.bench import BenchItem, read_bench, resolve_edits
from rvedit.io.errors import UserError
from rvedit.io.manifest import prepare_folder
from rvedit.io.records import CATEGORY_TITLES
from rvedit.io.video import probe, write_like

SOURCE, TRUE_EDIT = "source", "true edit"


@dataclass(frozen=True)
class GalleryConfig:
    """Whose edits of what are shown."""

    results: tuple[str, ...]
    """Folders of edits, or NAME=FOLDER."""
    out: Path
    bench: Path | None = None
    """The list of items; none: what `rvedit edit --batch` left in the first folder."""
    items: tuple[str, ...] = ()
    """Ids; none: the first ones of each category."""
    per_category: int = 2
    columns: int = 5
    """Frames of each clip."""
    video: bool = True
    """Also write a clip for each item."""


@dataclass(frozen=True)
class GalleryReport:
    """What was written."""

    folder: Path
    figures: tuple[Path, ...]
    clips: tuple[Path, ...]
    items: int


def analyze_gallery(
    config: GalleryConfig, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> GalleryReport:
    """Draw a figure for each category, of items that all methods have edited, and a clip for each item.

    Raises UserError where there is no such item, or one that was asked for is not there.
    """
    methods = _methods(config.results)
    items = read_bench(config.bench or next(iter(methods.values())))
    edits = {name: resolve_edits(items, folder) for name, folder in methods.items()}
    chosen = _choose(config, items, edits)
    prepare_folder(config.out)
    figures: list[Path] = []
    clips: list[Path] = []
    total = sum(len(group) for group in chosen.values()) * (1 + config.video)
    done = 0
    for category, group in chosen.items():
        exhibits = [_exhibit(item, edits) for item in group]
        title = CATEGORY_TITLES.get(category, category)
        figures += plot_gallery(
            exhibits, config.out / f"gallery_{_file_name(category)}", config.columns, title
        )
        done += len(exhibits)
        on_progress(done, total)
        for exhibit in exhibits if config.video else ():
            path = config.out / f"{_file_name(category)}_{_file_name(exhibit.id)}.mp4"
            write_like(path, probe(exhibit.clips[SOURCE]), side_by_side(exhibit))
            clips.append(path)
            done += 1
            on_progress(done, total)
    return GalleryReport(
        config.out, tuple(figures), tuple(clips), sum(len(group) for group in chosen.values())
    )


def _methods(results: tuple[str, ...]) -> dict[str, Path]:
    """Name -> folder, in the order given."""
    methods: dict[str, Path] = {}
    for result in results:
        given, folder = split_name(result)
        path = Path(folder)
        if not path.is_dir():
            raise UserError(f"{result}: no such folder: name folders of edits, or NAME=FOLDER")
        name = given or path.name
        if name in (SOURCE, TRUE_EDIT):
            raise UserError(f"{result}: a method cannot be called {name}: write NAME=FOLDER")
        if name in methods:
            raise UserError(f"{result}: two methods are called {name}: write NAME=FOLDER")
        methods[name] = path
    return methods


def _choose(
    config: GalleryConfig, items: list[BenchItem], edits: dict[str, dict[str, Path]]
) -> dict[str, list[BenchItem]]:
    shared = [item for item in items if all(item.id in found for found in edits.values())]
    if not shared:
        raise UserError(f"no item was edited by all of {', '.join(edits)}: is --bench the right list?")
    if config.items:
        by_id = {item.id: item for item in shared}
        unknown = next((name for name in config.items if name not in by_id), None)
        if unknown:
            raise UserError(
                f"--item {unknown}: no such item that all methods have edited, such as {shared[0].id}"
            )
        shared = [by_id[name] for name in config.items]
    groups: dict[str, list[BenchItem]] = defaultdict(list)
    for item in shared:
        group = groups[item.category.value if item.category else item.word or "edits"]
        if config.items or len(group) < config.per_category:
            group.append(item)
    return groups


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]", "_", text)


def _exhibit(item: BenchItem, edits: dict[str, dict[str, Path]]) -> GalleryFigure:
    clips = {SOURCE: item.source, **{name: found[item.id] for name, found in edits.items()}}
    if item.target is not None:
        clips[TRUE_EDIT] = item.target
    return GalleryFigure(item.id, item.instruction, clips)

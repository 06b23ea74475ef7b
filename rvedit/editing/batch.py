"""Edit a list of clips into a folder that `rvedit judge` can score."""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rvedit.editing.config import EditConfig
from rvedit.editing.edit_file import checked_instruction, edit_file, write_edit
from rvedit.io.bench import BenchItem, read_bench, write_batch
from rvedit.io.errors import UserError, reason_of
from rvedit.io.manifest import prepare_folder, write_json, write_rows
from rvedit.io.ray_jobs import run_actors
from rvedit.io.video import STILL_SUFFIXES, VideoReader
from rvedit.io.video.clip import Frames

SETTINGS = "settings.json"
_MAX_NAME_BYTES = 200
"""File systems allow 255; the rest is for `_edited`, a suffix, and the marks of an incomplete file."""


@dataclass(frozen=True)
class BatchConfig:
    """Items of a batch edit, and this process's share of them."""

    bench: Path
    out: Path
    model: str = "nano"
    """Name of the model, recorded beside the edits."""
    shard: tuple[int, int] = (0, 1)
    """(i, n): this is process i of n, counted from 0."""
    limit: int | None = None
    overwrite: bool = False
    together: int = 1
    """Number of clips to edit in one pass, if they have equal size and length and fit a window."""
    loading: Mapping[str, str | Sequence[str] | None] = field(default_factory=dict)
    """Options of the pipeline, also recorded beside the edits."""


@dataclass(frozen=True)
class BatchReport:
    """Result of this process's share."""

    folder: Path
    edited: int
    skipped: int
    """Items that an earlier run had edited."""
    failures: dict[str, str]
    """Reasons by item."""


def plan_batch(batch: BatchConfig) -> list[BenchItem]:
    """Return the items with the paths of their edits: `<stem>_edited.mp4`, or `<id>_edited.mp4`.

    An item whose name is too long for that gets `<row>_edited.mp4`, with three digits or more. Edits of
    images end in .png. Names depend on the list only, so that all shards choose the same ones.
    """
    items = read_bench(batch.bench)
    stems = Counter(_safe_name(item.source.stem) for item in items)
    planned: dict[str, BenchItem] = {}
    for row, item in enumerate(items):
        stem = _safe_name(item.source.stem)
        name = stem if stems[stem] == 1 else _safe_name(item.id)
        if len(name.encode()) > _MAX_NAME_BYTES:
            name = f"{item.index:03d}"
        while name in planned:
            name = f"{name}_row{row}"
        suffix = ".png" if item.source.suffix.lower() in STILL_SUFFIXES else ".mp4"
        planned[name] = replace(item, edited=batch.out / f"{name}_edited{suffix}")
    return list(planned.values())[: batch.limit]


def _safe_name(name: str) -> str:
    """Replace characters other than letters, digits, `_`, `.` and `-`."""
    return re.sub(r"[^\w.-]", "_", name)


def edit_batch(
    batch: BatchConfig,
    items: Sequence[BenchItem],
    load: Callable[[], Any],
    config: EditConfig,
    on_progress: Callable[[int, int, str], None] = lambda done, total, name: None,
    ray: str | None = None,
) -> BatchReport:
    """Edit this shard's items. Existing edits are kept, and failures are listed without stopping the batch.

    `load` returns the pipeline and is called only if there is something to edit. `on_progress` receives the
    number of finished items, the total, and the next item's id. `ray` is the address of a cluster, each
    process of which calls `load` (see `run_actors`). Raises UserError if the folder's edits were made with
    other settings.
    """
    if batch.together > 1 and config.mask is not None:
        raise UserError("`together`: edits with a mask are made one by one: leave it out")
    prepare_folder(batch.out)
    settings = {"model": batch.model, **asdict(config), **batch.loading}
    for name in ("mask", "reference_image"):
        value = getattr(config, name)
        settings[name] = None if value is None else str(value)
    del settings["frame_rate"]  # each clip has its own
    if not batch.overwrite and any(_output_of(item).is_file() for item in items):
        _check_settings(batch.out, settings)
    write_batch(batch.out, items)
    index, num_shards = batch.shard
    shard = items[index::num_shards]
    pending = [item for item in shard if batch.overwrite or not _output_of(item).is_file()]
    num_skipped = len(shard) - len(pending)
    make_editor = partial(_ItemEditor, load, config, batch.together)
    editor = None if ray or not pending else make_editor()
    if any(item.reference_image for item in pending):
        _warn_of_reference_images(batch.model, editor)
    # An interrupted run must not leave old edits that look like new ones. With other settings than before,
    # the edits of all shards are old.
    is_changed = batch.overwrite and _recorded_settings(batch.out, settings) != settings
    for item in items if is_changed else pending:
        if _output_of(item).is_file():
            _output_of(item).unlink()
    write_json(batch.out / SETTINGS, settings)
    groups = [pending[start : start + batch.together] for start in range(0, len(pending), batch.together)]
    results: Iterator[tuple[BenchItem, str | None]] = iter(())
    if ray:
        results = _edit_on_ray(make_editor, groups, ray)
    elif editor:
        results = (result for group in groups for result in editor(group))
    reasons: dict[str, str | None] = {}
    on_progress(num_skipped, len(shard), pending[0].id if pending else "")
    for number, (item, reason) in enumerate(results, start=1):
        reasons[item.id] = reason
        following = pending[number].id if number < len(pending) else ""
        on_progress(num_skipped + number, len(shard), following)
    failures = {item.id: reason for item in pending if (reason := reasons[item.id])}
    path = failures_path(batch)
    if failures:
        write_rows(path, [{"id": name, "reason": reason} for name, reason in failures.items()])
    else:
        path.unlink(missing_ok=True)
    return BatchReport(batch.out, len(pending) - len(failures), num_skipped, failures)


class _ItemEditor:
    """Edits groups of items with one pipeline, each group in one pass where that is possible."""

    def __init__(self, load: Callable[[], Any], config: EditConfig, together: int) -> None:
        self.pipe, self.config, self.together = load(), config, together
        if together > 1 and type(self.pipe).__name__ != "RVEDiTPipeline":
            raise UserError("`together`: is for RVEDiT models only: leave it out")

    def __call__(self, group: Sequence[BenchItem]) -> Iterator[tuple[BenchItem, str | None]]:
        """Edit the items; yield each with the reason of its failure, or None."""
        together = _edit_together(group, self.pipe, self.config) if self.together > 1 else {}
        for item in group:
            reason = None
            try:
                self._edit(item, together.get(item.id))
            except Exception as error:  # such as a full memory: the other items are still edited
                reason = reason_of(error)
            yield item, reason

    def _edit(self, item: BenchItem, edited: Frames | None) -> None:
        """Write the edit of an item, of which the frames may have been edited before."""
        instruction = checked_instruction(item.instruction)
        with VideoReader(item.source) as reader:
            if edited is not None:
                write_edit(reader, partial(_alongside, edited), _output_of(item), overwrite=True)
            else:
                config = _for_item(self.config, item, self.pipe)
                edit_file(reader, instruction, _output_of(item), self.pipe, config, overwrite=True)


class _GroupActor:
    """Edits groups of items by their numbers."""

    def __init__(self, make_editor: Callable[[], _ItemEditor], groups: Sequence[Sequence[BenchItem]]) -> None:
        self.edit, self.groups = make_editor(), groups

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        return {**job, "reasons": [reason for _, reason in self.edit(self.groups[job["group"]])]}


def _edit_on_ray(
    make_editor: Callable[[], _ItemEditor], groups: Sequence[Sequence[BenchItem]], address: str
) -> Iterator[tuple[BenchItem, str | None]]:
    """Edit groups of items on a Ray cluster; yield each item with the reason of a failure, or None."""
    jobs = [{"group": number} for number in range(len(groups))]
    for result in run_actors(partial(_GroupActor, make_editor, groups), jobs, address):
        yield from zip(groups[result["group"]], result["reasons"], strict=True)


def _alongside(edited: Frames, source: Iterable[Frames]) -> Iterator[Frames]:
    """Yield the edited frames, reading one source frame for each."""
    for _, frame in zip(source, edited, strict=True):
        yield frame


def _for_item(config: EditConfig, item: BenchItem, pipe: Any) -> EditConfig:
    """Add the item's description and reference image if the model reads them."""
    from rvedit.pipelines.baselines import capabilities

    reads = capabilities(pipe)
    if item.description and reads.description:
        config = replace(config, description=item.description)
    if item.reference_image and reads.reference_image:
        config = replace(config, reference_image=item.reference_image)
    return config


def _warn_of_reference_images(model: str, editor: _ItemEditor | None) -> None:
    from rvedit.pipelines.baselines import capabilities
    from rvedit.pipelines.loading import capabilities_of

    reads = capabilities(editor.pipe) if editor else capabilities_of(model)
    if reads and not reads.reference_image:
        warnings.warn("the list has reference images, which this model does not read", stacklevel=3)


def _edit_together(items: Sequence[BenchItem], pipe: Any, config: EditConfig) -> dict[str, Frames]:
    """Return edited clips by item id. Items that fail or are longer than a window are left out."""
    from rvedit.editing.long_video import count_windows, edit_videos_together

    groups: dict[tuple[int, ...], list[tuple[BenchItem, Frames]]] = {}
    for item in items:
        with suppress(UserError), VideoReader(item.source) as reader:
            fits = count_windows(pipe, reader.info.num_frames) == 1
            if fits and item.instruction.strip() and not item.reference_image:
                clip = np.stack([timed.frame for timed in reader])
                groups.setdefault(clip.shape, []).append((item, clip))
    edited: dict[str, Frames] = {}
    for group in groups.values():
        prompts = [checked_instruction(item.instruction) for item, _ in group]
        with suppress(RuntimeError):  # such as a full memory: the clips are then edited one by one
            clips = edit_videos_together(pipe, [clip for _, clip in group], prompts, config)
            edited |= {item.id: clip for (item, _), clip in zip(group, clips, strict=True)}
    return edited


def _recorded_settings(folder: Path, default: dict[str, Any]) -> dict[str, Any]:
    path = folder / SETTINGS
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else default


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Raise UserError if a folder's edits were made with other settings."""
    recorded = {**asdict(EditConfig()), **_recorded_settings(folder, settings)}  # of older versions: defaults
    for name, value in settings.items():
        if recorded.get(name) != value:
            raise UserError(
                f"{folder}: its edits were made with {name} {recorded.get(name)}, not {value}: choose "
                "another `out_dir`, or replace them with `overwrite`"
            )


def failures_path(batch: BatchConfig) -> Path:
    """Return the path of the list of a shard's failures."""
    index, count = batch.shard
    return batch.out / ("failures.jsonl" if count == 1 else f"failures_{index + 1}of{count}.jsonl")


def _output_of(item: BenchItem) -> Path:
    assert item.edited is not None
    return item.edited

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


def read_shard(text: str) -> tuple[int, int]:
    """Parse `2/8`, the second of eight processes, as (1, 8). Raises UserError."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"`shard` {text}: give I/N, such as 1/4 for the first of four")
    return int(match[1]) - 1, int(match[2])


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
) -> BatchReport:
    """Edit this shard's items. Existing edits are kept, and failures are listed without stopping the batch.

    `load` returns the pipeline and is called only if there is something to edit. `on_progress` receives the
    number of finished items, the total, and the next item's id. Raises UserError if the folder's edits were
    made with other settings.
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
    failures: dict[str, str] = {}
    pipe = load() if pending else None
    if pipe is not None and batch.together > 1 and type(pipe).__name__ != "RVEDiTPipeline":
        raise UserError("`together`: is for RVEDiT models only: leave it out")
    if pipe is not None and any(item.reference_image for item in pending):
        _warn_of_reference_images(pipe)
    # An interrupted run must not leave old edits that look like new ones. With other settings than before,
    # the edits of all shards are old.
    is_changed = batch.overwrite and _recorded_settings(batch.out, settings) != settings
    for item in items if is_changed else pending:
        if _output_of(item).is_file():
            _output_of(item).unlink()
    write_json(batch.out / SETTINGS, settings)
    edited_together: dict[str, Frames] = {}
    for number, item in enumerate(pending):
        on_progress(num_skipped + number, len(shard), item.id)
        if batch.together > 1 and number % batch.together == 0:
            edited_together = _edit_together(pending[number : number + batch.together], pipe, config)
        try:
            instruction = checked_instruction(item.instruction)
            with VideoReader(item.source) as reader:
                if item.id in edited_together:
                    frames = partial(_alongside, edited_together[item.id])
                    write_edit(reader, frames, _output_of(item), overwrite=True)
                else:
                    item_config = _for_item(config, item, pipe)
                    edit_file(reader, instruction, _output_of(item), pipe, item_config, overwrite=True)
        except Exception as error:  # such as a full memory: the other items are still edited
            failures[item.id] = reason_of(error)
    on_progress(len(shard), len(shard), "")
    path = failures_path(batch)
    if failures:
        write_rows(path, [{"id": name, "reason": reason} for name, reason in failures.items()])
    else:
        path.unlink(missing_ok=True)
    return BatchReport(batch.out, len(pending) - len(failures), num_skipped, failures)


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


def _warn_of_reference_images(pipe: Any) -> None:
    from rvedit.pipelines.baselines import capabilities

    if not capabilities(pipe).reference_image:
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

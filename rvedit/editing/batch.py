"""`rvedit edit --batch`: a list of clips and instructions becomes a folder of edits that can be judged."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rvedit.editing.config import EditConfig
from rvedit.editing.edit_file import checked_instruction, edit_file, write_edit
from rvedit.io.bench import BenchItem, read_bench, write_batch
from rvedit.io.errors import UserError, reason_of
from rvedit.io.manifest import prepare_folder, write_json, write_rows
from rvedit.io.video import VideoReader

if TYPE_CHECKING:
    from rvedit.io.frames import Frames


SETTINGS = "settings.json"
_RECORDED = ("num_inference_steps", "guidance_scale", "seed", "preserve", "detail", "description", "mask")


@dataclass(frozen=True)
class BatchConfig:
    """Which edits are wanted, and which of them are this process's."""

    bench: Path
    out: Path
    model: str = "nano"
    """Of the edits, as it is recorded beside them."""
    shard: tuple[int, int] = (0, 1)
    """The i-th of n processes, from 0."""
    limit: int | None = None
    overwrite: bool = False
    together: int = 1
    """Clips that are edited in one pass, where they are of one size and length and fit a window."""
    loading: Mapping[str, str | None] = field(default_factory=dict)
    """What else tells how the edits are made, by option; it is recorded beside them, too."""


@dataclass(frozen=True)
class BatchReport:
    """What became of this process's share."""

    folder: Path
    edited: int
    there: int
    """Edits of an earlier run, which are kept."""
    failures: dict[str, str]
    """By item: why there is no edit."""


def read_shard(text: str) -> tuple[int, int]:
    """`2/8`: the second of eight processes. Raises UserError."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--shard {text}: give I/N, such as 1/4 for the first of four")
    return int(match[1]) - 1, int(match[2])


def plan_batch(batch: BatchConfig) -> list[BenchItem]:
    """All items with the clips that their edits go to: `<stem>_edited.mp4`, or `<id>_edited.mp4`.

    The names are a function of the list alone, so that all shards agree on them.
    """
    items = read_bench(batch.bench)
    stems = Counter(_plain(item.source.stem) for item in items)
    planned: dict[str, BenchItem] = {}
    for row, item in enumerate(items):
        stem = _plain(item.source.stem)
        name = stem if stems[stem] == 1 else _plain(item.id)
        while name in planned:
            name = f"{name}_row{row}"
        planned[name] = replace(item, edited=batch.out / f"{name}_edited.mp4")
    return list(planned.values())[: batch.limit]


def _plain(name: str) -> str:
    """Letters, digits and what else no shell or file system minds."""
    return re.sub(r"[^\w.-]", "_", name)


def edit_batch(
    batch: BatchConfig,
    items: Sequence[BenchItem],
    load: Callable[[], Any],
    config: EditConfig,
    on_progress: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> BatchReport:
    """Edit this shard's items; existing edits are kept, and failures are listed and skipped.

    `load` returns the pipeline; it is called once there is something to edit. `on_progress` gets the number
    of finished items, the total, and the next item's name. Raises UserError if the folder's edits were made
    with other settings.
    """
    prepare_folder(batch.out)
    chosen = {name: asdict(config)[name] for name in _RECORDED}
    chosen["mask"] = str(config.mask) if config.mask else None
    making = {"model": batch.model, **chosen, **batch.loading}
    if not batch.overwrite and any(_edit_of(item).is_file() for item in items):
        _check_making(batch.out, making)
    write_batch(batch.out, items)
    first, step = batch.shard
    mine = items[first::step]
    waiting = [item for item in mine if batch.overwrite or not _edit_of(item).is_file()]
    failures: dict[str, str] = {}
    pipe = load() if waiting else None
    if batch.together > 1 and pipe is not None:
        _check_together(pipe)
    # What is to be made anew is not to be taken for new before it is; in a folder of other edits, nothing is.
    was_otherwise = batch.overwrite and _made(batch.out, making) != making
    for item in items if was_otherwise else waiting:
        _edit_of(item).unlink(missing_ok=True)
    write_json(batch.out / SETTINGS, making)
    ahead: dict[str, Frames] = {}
    for number, item in enumerate(waiting):
        on_progress(len(mine) - len(waiting) + number, len(mine), item.id)
        if batch.together > 1 and number % batch.together == 0:
            some = waiting[number : number + batch.together]
            ahead = _edit_together(some, pipe, config)
        try:
            instruction = checked_instruction(item.instruction)
            with VideoReader(item.source) as reader:
                if item.id in ahead:
                    in_step = partial(_in_step, ahead[item.id])
                    write_edit(reader, in_step, _edit_of(item), overwrite=True)
                else:
                    described = _with_description(config, item, pipe)
                    edit_file(reader, instruction, _edit_of(item), pipe, described, overwrite=True)
        except Exception as error:  # whatever one clip does (a full memory, say), the others are still edited
            failures[item.id] = reason_of(error)
    on_progress(len(mine), len(mine), "")
    path = failures_path(batch)
    if failures:
        write_rows(path, [{"id": name, "reason": reason} for name, reason in failures.items()])
    else:
        path.unlink(missing_ok=True)
    edited = len(waiting) - len(failures)
    return BatchReport(batch.out, edited, len(mine) - len(waiting), failures)


def _in_step(edited: Frames, source: Iterable[Frames]) -> Iterator[Frames]:
    """Yield a clip's edited frames while its source is read."""
    for _, frame in zip(source, edited, strict=True):
        yield frame


def _with_description(config: EditConfig, item: BenchItem, pipe: Any) -> EditConfig:
    """Add the item's description where the model reads one."""
    from rvedit.pipelines.baselines import capabilities

    reads_it = item.description and capabilities(pipe).description
    return replace(config, description=item.description) if reads_it else config


def _check_together(pipe: Any) -> None:
    from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline

    if not isinstance(pipe, RVEDiTPipeline):
        raise UserError("`together`: is for RVEDiT's models")


def _edit_together(items: Sequence[BenchItem], pipe: Any, config: EditConfig) -> dict[str, Frames]:
    """Edit those that can share a batch, by item; the others, unreadable clips among them, are left out."""
    from rvedit.editing.long_video import count_windows, edit_videos_together

    groups: dict[tuple[int, ...], list[tuple[BenchItem, Frames]]] = {}
    for item in items:
        with suppress(UserError), VideoReader(item.source) as reader:
            if count_windows(pipe, reader.info.num_frames) == 1 and item.instruction.strip():
                clip = np.stack([timed.frame for timed in reader])
                groups.setdefault(clip.shape, []).append((item, clip))
    edited: dict[str, Frames] = {}
    for group in groups.values():
        prompts = [checked_instruction(item.instruction) for item, _ in group]
        with suppress(RuntimeError):  # such as a full memory: each alone needs less
            clips = edit_videos_together(pipe, [clip for _, clip in group], prompts, config)
            edited |= {item.id: clip for (item, _), clip in zip(group, clips, strict=True)}
    return edited


def _made(folder: Path, making: dict[str, Any]) -> dict[str, Any]:
    """How a folder's edits were made, as it says itself; as now where it does not say."""
    path = folder / SETTINGS
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else making


def _check_making(folder: Path, making: dict[str, Any]) -> None:
    """One folder holds the edits of one model at one setting, and says which."""
    made = _made(folder, making)
    for name, value in making.items():
        if made.get(name) != value:
            raise UserError(
                f"{folder}: its edits were made with {name} {made.get(name)}, not {value}: choose another "
                "--out-dir, or make them anew with --overwrite"
            )


def failures_path(batch: BatchConfig) -> Path:
    """Where a shard's failures are listed."""
    first, step = batch.shard
    return batch.out / ("failures.jsonl" if step == 1 else f"failures_{first + 1}of{step}.jsonl")


def _edit_of(item: BenchItem) -> Path:
    assert item.edited is not None
    return item.edited

"""`rvedit edit --batch`: a list of clips and instructions becomes a folder of edits that can be judged."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from rvedit.data.bench import BenchItem, read_bench, write_batch
from rvedit.data.manifest import prepare_folder, write_json, write_rows
from rvedit.errors import UserError, reason_of
from rvedit.records import EditSettings, Progress
from rvedit.video import VideoReader
from rvedit.workflows.edit import checked_instruction, edit_file

if TYPE_CHECKING:
    from rvedit.editors import Editor, RVEDiTEditor
    from rvedit.video_tensors import Frames


SETTINGS = "settings.json"
_RECORDED = ("num_inference_steps", "guidance_scale", "seed", "preserve", "detail", "description", "mask")


@dataclass(frozen=True)
class BatchOrder:
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


def plan_batch(order: BatchOrder) -> list[BenchItem]:
    """All items with the clips that their edits go to: `<stem>_edited.mp4`, or `<id>_edited.mp4`.

    The names are a function of the list alone, so that all shards agree on them.
    """
    items = read_bench(order.bench)
    stems = Counter(_plain(item.source.stem) for item in items)
    planned: dict[str, BenchItem] = {}
    for row, item in enumerate(items):
        stem = _plain(item.source.stem)
        name = stem if stems[stem] == 1 else _plain(item.id)
        while name in planned:
            name = f"{name}_row{row}"
        planned[name] = replace(item, edited=order.out / f"{name}_edited.mp4")
    return list(planned.values())[: order.limit]


def _plain(name: str) -> str:
    """Letters, digits and what else no shell or file system minds."""
    return re.sub(r"[^\w.-]", "_", name)


def edit_batch(
    order: BatchOrder,
    items: Sequence[BenchItem],
    load: Callable[[], Editor],
    settings: EditSettings,
    on_progress: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> BatchReport:
    """Edit this shard's items; what is there already is kept, and what fails is listed and passed over.

    `load` gives the editor, once there is something to edit. `on_progress` gets how many are done, of how
    many, and the next one's name. Raises UserError where the folder's edits were made in another way.
    """
    prepare_folder(order.out)
    chosen = {name: asdict(settings)[name] for name in _RECORDED}
    chosen["mask"] = str(settings.mask) if settings.mask else None
    making = {"model": order.model, **chosen, **order.loading}
    if not order.overwrite and any(_edit_of(item).is_file() for item in items):
        _check_making(order.out, making)
    write_batch(order.out, items)
    first, step = order.shard
    mine = items[first::step]
    waiting = [item for item in mine if order.overwrite or not _edit_of(item).is_file()]
    failures: dict[str, str] = {}
    editor = load() if waiting else None
    if order.together > 1 and editor is not None:
        _check_together(editor)
    # What is to be made anew is not to be taken for new before it is; in a folder of other edits, nothing is.
    was_otherwise = order.overwrite and _made(order.out, making) != making
    for item in items if was_otherwise else waiting:
        _edit_of(item).unlink(missing_ok=True)
    write_json(order.out / SETTINGS, making)
    ahead: dict[str, Editor] = {}
    for number, item in enumerate(waiting):
        on_progress(len(mine) - len(waiting) + number, len(mine), item.id)
        if order.together > 1 and number % order.together == 0:
            some = waiting[number : number + order.together]
            ahead = _edit_together(some, cast("RVEDiTEditor", editor), settings)
        try:
            instruction = checked_instruction(item.instruction)
            with VideoReader(item.source) as reader:
                assert editor is not None
                described = replace(settings, description=item.description or settings.description)
                editing = ahead.get(item.id, editor)
                edit_file(reader, instruction, _edit_of(item), editing, described, overwrite=True)
        except Exception as error:  # whatever one clip does (a full memory, say), the others are still edited
            failures[item.id] = reason_of(error)
    on_progress(len(mine), len(mine), "")
    path = failures_path(order)
    if failures:
        write_rows(path, [{"id": name, "reason": reason} for name, reason in failures.items()])
    else:
        path.unlink(missing_ok=True)
    edited = len(waiting) - len(failures)
    return BatchReport(order.out, edited, len(mine) - len(waiting), failures)


class _Edited:
    """The editor of a clip that has been edited together with others."""

    def __init__(self, edited: Frames, editor: RVEDiTEditor):
        self.edited = edited
        self.name = editor.name
        self.pipeline = editor.pipeline
        self.takes = editor.takes

    def edit(
        self,
        frames: Iterable[Frames],
        instruction: str,
        settings: EditSettings,
        on_progress: Callable[[Progress], None],
    ) -> Iterator[Frames]:
        """See `Editor.edit`."""
        for _, edited in zip(frames, self.edited, strict=True):
            yield edited

    def windows(self, num_frames: int) -> int:
        """See `Editor.windows`."""
        return 1


def _check_together(editor: Editor) -> None:
    from rvedit.editors import RVEDiTEditor

    if not isinstance(editor, RVEDiTEditor):
        raise UserError("--together is for RVEDiT's models")


def _edit_together(
    items: Sequence[BenchItem], editor: RVEDiTEditor, settings: EditSettings
) -> dict[str, Editor]:
    """By item, those that go in one pass with others; the rest, bad clips among them, is left alone."""
    groups: dict[tuple[int, ...], list[tuple[BenchItem, Frames]]] = {}
    for item in items:
        with suppress(UserError), VideoReader(item.source) as reader:
            if editor.windows(reader.info.num_frames) == 1 and item.instruction.strip():
                clip = np.stack([timed.frame for timed in reader])
                groups.setdefault(clip.shape, []).append((item, clip))
    edited: dict[str, Editor] = {}
    for group in groups.values():
        instructions = [checked_instruction(item.instruction) for item, _ in group]
        with suppress(RuntimeError):  # such as a full memory: each alone needs less
            clips = editor.edit_together([clip for _, clip in group], instructions, settings)
            edited |= {item.id: _Edited(clip, editor) for (item, _), clip in zip(group, clips, strict=True)}
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


def failures_path(order: BatchOrder) -> Path:
    """Where a shard's failures are listed."""
    first, step = order.shard
    return order.out / ("failures.jsonl" if step == 1 else f"failures_{first + 1}of{step}.jsonl")


def _edit_of(item: BenchItem) -> Path:
    assert item.edited is not None
    return item.edited

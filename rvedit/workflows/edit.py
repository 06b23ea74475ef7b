"""`rvedit edit`: a clip and an instruction become a clip of the same length, size and timing."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rvedit.errors import UserError
from rvedit.records import EditSettings, Progress
from rvedit.video import (
    IMAGE_SUFFIXES,
    OUTPUT_SUFFIXES,
    Frame,
    TimedFrame,
    VideoReader,
    VideoWriter,
    side_by_side,
)

if TYPE_CHECKING:  # torch is not imported before the files are known to be in order
    from rvedit.editors import Editor


@dataclass(frozen=True)
class EditReport:
    """What was written."""

    output: Path
    comparison: Path | None
    num_frames: int
    width: int
    height: int
    seconds: float


def default_output(source: Path) -> Path:
    """`clips/park.mp4` -> `park_edited.mp4` in the working directory.

    A folder of frames becomes an mp4, and so does what cannot be written as it is; a picture then a png.
    """
    suffix = source.suffix.lower() if source.is_file() else ""
    if suffix not in OUTPUT_SUFFIXES:
        suffix = ".png" if suffix in IMAGE_SUFFIXES else ".mp4"
    return Path(f"{source.stem}_edited{suffix}")


def comparison_output(output: Path) -> Path:
    """`park_edited.mp4` -> `park_edited_compare.mp4`."""
    return output.with_name(f"{output.stem}_compare{output.suffix}")


def edit_file(
    reader: VideoReader,
    instruction: str,
    output: Path,
    editor: Editor,
    settings: EditSettings | None = None,
    compare: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> EditReport:
    """Edit an open clip into `output`; nothing is left there if it fails or is interrupted."""
    instruction = checked_instruction(instruction)
    started = time.perf_counter()
    info = reader.info
    # What went in and has not come out, at most a window: times, and frames only where they are shown again.
    pending: deque[TimedFrame] = deque()

    def source_frames() -> Iterator[Frame]:
        for timed in reader:
            # An empty frame of its own: a slice would keep the whole one.
            pending.append(timed if compare else timed._replace(frame=np.empty((0, 0, 3), np.uint8)))
            yield timed.frame

    comparison = comparison_output(output) if compare else None
    written = 0
    with ExitStack() as stack:
        writer = stack.enter_context(VideoWriter(output, like=info, overwrite=overwrite))
        comparing = None
        if comparison:
            width = 2 * info.width + 2
            comparing = stack.enter_context(
                VideoWriter(comparison, like=info, overwrite=overwrite, width=width)
            )
        settings = replace(settings or EditSettings(), frame_rate=float(info.frame_rate))
        for edited in editor.edit(source_frames(), instruction, settings, on_progress):
            timed = pending.popleft()
            writer.write(edited, timed.pts, timed.duration)
            if comparing:
                comparing.write(side_by_side(timed.frame, edited), timed.pts, timed.duration)
            written += 1
    return EditReport(output, comparison, written, info.width, info.height, time.perf_counter() - started)


def checked_instruction(instruction: str) -> str:
    """The instruction without surrounding blanks; an empty one is a UserError."""
    if not instruction.strip():
        raise UserError(
            'the instruction is empty: say what to change, such as "replace the dog with a corgi"'
        )
    return instruction.strip()

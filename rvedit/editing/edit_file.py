"""Edit a file into a file of the same length, size, timing and sound."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rvedit.editing.config import EditConfig, Progress
from rvedit.io.errors import UserError
from rvedit.io.video import IMAGE_SUFFIXES, OUTPUT_SUFFIXES, Frame, VideoReader, VideoWriter, side_by_side


@dataclass(frozen=True)
class EditReport:
    """Files that were written."""

    output: Path
    comparison: Path | None
    num_frames: int
    width: int
    height: int
    seconds: float


def default_output(source: Path) -> Path:
    """Return the default output: `clips/park.mp4` -> `park_edited.mp4` in the working directory.

    Folders of frames, and videos in formats that cannot be written, become mp4; such images become png.
    """
    suffix = source.suffix.lower() if source.is_file() else ""
    if suffix not in OUTPUT_SUFFIXES:
        suffix = ".png" if suffix in IMAGE_SUFFIXES else ".mp4"
    return Path(f"{source.stem}_edited{suffix}")


def comparison_output(output: Path) -> Path:
    """Return the path of the comparison: `park_edited.mp4` -> `park_edited_compare.mp4`."""
    return output.with_name(f"{output.stem}_compare{output.suffix}")


def edit_file(
    reader: VideoReader,
    prompt: str,
    output: Path,
    pipe: Any,
    config: EditConfig | None = None,
    compare: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> EditReport:
    """Edit an open clip into `output`. No partial file is left if this fails or is interrupted."""
    from rvedit.editing.long_video import edit_video  # imports torch

    config = replace(config or EditConfig(), frame_rate=float(reader.info.frame_rate))
    prompt = checked_instruction(prompt)
    edit = partial(edit_video, pipe, prompt=prompt, config=config, on_progress=on_progress)
    return write_edit(reader, edit, output, compare, overwrite)


def write_edit(
    reader: VideoReader,
    edit: Callable[[Iterable[Frame]], Iterable[Frame]],
    output: Path,
    compare: bool = False,
    overwrite: bool = False,
) -> EditReport:
    """Write the frames that `edit` returns for a clip's frames, with the clip's timing, colors and sound.

    With `compare`, also write source and edit side by side to `comparison_output(output)`.
    """
    started = time.perf_counter()
    info, source = reader.info, _TimedSource(reader)
    comparison = comparison_output(output) if compare else None
    originals, num_frames = iter(reader), 0
    with ExitStack() as stack:
        writer = stack.enter_context(VideoWriter(output, like=info, overwrite=overwrite))
        side_writer = None
        if comparison:
            side_writer = VideoWriter(comparison, like=info, overwrite=overwrite, width=2 * info.width + 2)
            stack.enter_context(side_writer)
        for edited in edit(source):
            times = source.times.popleft()
            writer.write(edited, *times)
            if side_writer:
                side_writer.write(side_by_side(next(originals).frame, edited), *times)
            num_frames += 1
    return EditReport(output, comparison, num_frames, info.width, info.height, time.perf_counter() - started)


class _TimedSource:
    """Frames of a clip that can be iterated again; `times` holds those of the first iteration."""

    def __init__(self, reader: VideoReader) -> None:
        self.reader = reader
        self.times: deque[tuple[int, int | None]] = deque()
        self._was_read = False

    def __iter__(self) -> Iterator[Frame]:
        is_first, self._was_read = not self._was_read, True
        for timed in self.reader:
            if is_first:
                self.times.append((timed.pts, timed.duration))
            yield timed.frame


def checked_instruction(instruction: str) -> str:
    """Return an instruction without surrounding whitespace. Raises UserError for an empty one."""
    if not instruction.strip():
        raise UserError('the instruction is empty: give one, such as "replace the dog with a corgi"')
    return instruction.strip()

"""`rvedit edit`: a clip and an instruction become a clip of the same length, size and timing."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rvedit.editing.config import EditConfig, Progress
from rvedit.io.errors import UserError
from rvedit.io.video import (
    IMAGE_SUFFIXES,
    OUTPUT_SUFFIXES,
    Frame,
    VideoReader,
    VideoWriter,
    side_by_side,
)


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
    prompt: str,
    output: Path,
    pipe: Any,
    config: EditConfig | None = None,
    compare: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> EditReport:
    """Edit an open clip into `output`; nothing is left there if it fails or is interrupted."""
    from rvedit.editing.long_video import edit_video  # imports torch

    config = replace(config or EditConfig(), frame_rate=float(reader.info.frame_rate))
    prompt = checked_instruction(prompt)
    return write_edit(
        reader,
        lambda source: edit_video(pipe, source, prompt, config, on_progress=on_progress),
        output,
        compare,
        overwrite,
    )


def write_edit(
    reader: VideoReader,
    edit: Callable[[Iterable[Frame]], Iterable[Frame]],
    output: Path,
    compare: bool = False,
    overwrite: bool = False,
) -> EditReport:
    """Write what `edit` makes of a clip's frames, with the clip's times, colors and sound.

    With `compare` also source and edit side by side, beside the output.
    """
    started = time.perf_counter()
    info = reader.info
    source = _TimedSource(reader)
    originals = iter(reader) if compare else None
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
        for edited in edit(source):
            times = source.times.popleft()
            writer.write(edited, *times)
            if comparing and originals:
                comparing.write(side_by_side(next(originals).frame, edited), *times)
            written += 1
    return EditReport(output, comparison, written, info.width, info.height, time.perf_counter() - started)


class _TimedSource:
    """A clip's frames, which can be read again; the times of the first reading are kept."""

    def __init__(self, reader: VideoReader) -> None:
        self.reader = reader
        self.times: deque[tuple[int, int | None]] = deque()
        self._is_read = False

    def __iter__(self) -> Iterator[Frame]:
        is_first, self._is_read = not self._is_read, True
        for timed in self.reader:
            if is_first:
                self.times.append((timed.pts, timed.duration))
            yield timed.frame


def checked_instruction(instruction: str) -> str:
    """The instruction without surrounding blanks; an empty one is a UserError."""
    if not instruction.strip():
        raise UserError(
            'the instruction is empty: say what to change, such as "replace the dog with a corgi"'
        )
    return instruction.strip()

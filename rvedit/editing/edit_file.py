"""Edit a file into a file of the same length, size, timing and sound."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rvedit.editing.config import EditConfig, Progress
from rvedit.editing.contact_sheet import NUM_MOMENTS, write_contact_sheet
from rvedit.editing.regions import as_masks
from rvedit.editing.time_range import FrameRange, Slice, edit_range
from rvedit.io.errors import UserError
from rvedit.io.temporary import MAX_NAME_BYTES, shorten
from rvedit.io.video import (
    OUTPUT_SUFFIXES,
    STILL_SUFFIXES,
    Frame,
    VideoInfo,
    VideoReader,
    VideoWriter,
    default_suffix,
    evenly_spaced,
    side_by_side,
)


@dataclass(frozen=True)
class EditReport:
    """Files that were written."""

    output: Path
    comparison: Path | None
    contact_sheet: Path | None
    num_frames: int
    width: int
    height: int
    seconds: float


def default_output(info: VideoInfo) -> Path:
    """Return the default output: `clips/park.mp4` -> `park_edited.mp4` in the working directory.

    Other suffixes are chosen by `default_suffix`.
    """
    stem = shorten(info.path.stem, MAX_NAME_BYTES - 35)  # `_edited_compare.mp4` still fits
    return Path(f"{stem}_edited{default_suffix(info)}")


def comparison_output(output: Path) -> Path:
    """Return the path of the comparison: `park_edited.mp4` -> `park_edited_compare.mp4`."""
    return output.with_name(f"{output.stem}_compare{output.suffix}")


def edit_file(
    reader: VideoReader,
    prompt: str | Sequence[str],
    output: Path,
    pipe: Any,
    config: EditConfig | Sequence[EditConfig] | None = None,
    *,
    part: FrameRange | None = None,
    compare: bool = False,
    contact_sheet: Path | None = None,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    callback_on_step_end: Callable[..., Any] | None = None,
) -> EditReport:
    """Edit an open clip into `output`. No partial file is left if this fails or is interrupted.

    Args:
        prompt: the instruction, or several, each of which edits the frames that the one before returned.
        config: settings, or one config per instruction. Masks are those of the whole clip.
        part: the frames to edit; None: all.
        compare: also write source and edit side by side to `comparison_output(output)`.
        contact_sheet: also write a picture of source and edit at eight moments.
        overwrite: replace existing outputs.
        on_progress: called after each denoising step.
        callback_on_step_end: also called then, by the pipeline, as in diffusers; such as a `Preview`.
    """
    from rvedit.editing.long_video import edit_video  # imports torch

    prompts = [prompt] if isinstance(prompt, str) else prompt
    configs = [config or EditConfig()] * len(prompts) if not isinstance(config, Sequence) else config
    edits = []
    for number, (text, settings) in enumerate(zip(prompts, configs, strict=True), start=1):
        settings = replace(settings, frame_rate=float(reader.info.frame_rate))
        if settings.mask is not None and part is not None:
            settings = replace(settings, mask=Slice(as_masks(settings.mask), part.first, part.stop))
        report = None if on_progress is None else partial(_report_of, on_progress, number)
        edits.append((checked_instruction(text), settings, report))

    def edit(frames: Iterable[Frame]) -> Iterable[Frame]:
        for text, settings, report in edits:
            frames = edit_video(
                pipe,
                frames,
                text,
                settings,
                on_progress=report,
                callback_on_step_end=callback_on_step_end,
            )
        return frames

    whole = edit if part is None else partial(edit_range, edit=edit, part=part)
    shown = range(reader.info.num_frames) if part is None else range(part.first, part.stop)
    moments = {shown[index] for index in evenly_spaced(len(shown), NUM_MOMENTS)}
    return write_edit(reader, whole, output, compare, overwrite, contact_sheet, moments)


def _report_of(on_progress: Callable[[Progress], None], edit: int, progress: Progress) -> None:
    on_progress(replace(progress, edit=edit))


def write_edit(
    reader: VideoReader,
    edit: Callable[[Iterable[Frame]], Iterable[Frame]],
    output: Path,
    compare: bool = False,
    overwrite: bool = False,
    contact_sheet: Path | None = None,
    moments: Collection[int] = (),
) -> EditReport:
    """Write the frames that `edit` returns for a clip's frames, with the clip's timing, colors and sound.

    With `compare`, also write source and edit side by side to `comparison_output(output)`; with
    `contact_sheet`, also a picture of the frames with the numbers `moments`.
    """
    started = time.perf_counter()
    info, source = reader.info, _TimedSource(reader)
    comparison = comparison_output(output) if compare else None
    originals = iter(reader) if compare else reader.pick(moments if contact_sheet else ())
    pairs: list[tuple[float, Frame, Frame]] = []
    num_frames = first_pts = 0
    with ExitStack() as stack:
        writer = stack.enter_context(VideoWriter(output, like=info, overwrite=overwrite))
        side_writer = None
        if comparison:
            side_writer = VideoWriter(comparison, like=info, overwrite=overwrite, width=2 * info.width + 2)
            stack.enter_context(side_writer)
        for edited in edit(source):
            times = source.times.popleft()
            first_pts = first_pts if num_frames else times[0]
            writer.write(edited, *times)
            is_shown = contact_sheet is not None and num_frames in moments
            if side_writer or is_shown:
                original = next(originals).frame
                if side_writer:
                    side_writer.write(side_by_side(original, edited), *times)
                if is_shown:
                    pairs.append((float((times[0] - first_pts) * info.time_base), original, edited))
            num_frames += 1
    if contact_sheet:
        write_contact_sheet(contact_sheet, info, pairs, overwrite)
    seconds = time.perf_counter() - started
    return EditReport(output, comparison, contact_sheet, num_frames, info.width, info.height, seconds)


class _TimedSource:
    """Frames of a clip that can be iterated again; `times` holds the times of frames that were read."""

    def __init__(self, reader: VideoReader) -> None:
        self.reader = reader
        self.times: deque[tuple[int, int | None]] = deque()
        self._num_read = 0

    def __iter__(self) -> Iterator[Frame]:
        for number, timed in enumerate(self.reader):
            if number == self._num_read:
                self._num_read += 1
                self.times.append((timed.pts, timed.duration))
            yield timed.frame


def checked_instruction(instruction: str) -> str:
    """Return an instruction without surrounding whitespace. Raises UserError for an empty one."""
    if not instruction.strip():
        raise UserError('the instruction is empty: give one, such as "replace the dog with a corgi"')
    return instruction.strip()


def checked_instructions(instructions: Sequence[str]) -> list[str]:
    """Return instructions without surrounding whitespace.

    Raises UserError for an empty one, and for words that are no instruction: file names, and single words
    among several, which come from an instruction without quotes.
    """
    checked = [checked_instruction(instruction) for instruction in instructions]
    for text in checked:
        # os.path.isfile is also False for a text that is too long to be a name.
        if Path(text).suffix.lower() in (*OUTPUT_SUFFIXES, *STILL_SUFFIXES) or os.path.isfile(text):
            raise UserError(
                f"{text}: is a file, not an instruction: give one clip, and the output with `output`"
            )
        if len(checked) > 1 and " " not in text:
            raise UserError(f'{text}: is one word: put each instruction in quotes, such as "make it {text}"')
    return checked


def check_distinct(outputs: Mapping[str, Path | None], inputs: Mapping[str, Path | None]) -> None:
    """Raise UserError if a file would be written twice, or over an input; names by parameter."""
    seen = {path.resolve(): name for name, path in inputs.items() if path is not None}
    for name, path in outputs.items():
        if path is None:
            continue
        if (other := seen.get(path.resolve())) is not None:
            raise UserError(f"{path}: is given by {name} and by {other}: choose different files")
        seen[path.resolve()] = name

"""Frames of a file without their times, and times without the frames."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from rvedit.io.errors import UserError
from rvedit.io.video.clip import Frame, VideoInfo
from rvedit.io.video.containers import decode_times
from rvedit.io.video.reader import VideoReader


def frame_times(info: VideoInfo) -> tuple[list[Fraction], Fraction]:
    """Return the times of a clip's frames and the end of the last one, in seconds since the first frame.

    Decodes all frames of a container, as only the decoder knows which ones it shows.
    """
    if not info.streams:
        return [n * info.time_base for n in range(info.num_frames)], info.num_frames * info.time_base
    times = list(decode_times(info))
    if not times:
        raise UserError(f"{info.path}: no frame decodes; get another copy")
    first, (last, duration) = times[0][0], times[-1]
    seconds = [(pts - first) * info.time_base for pts, _ in times]
    return seconds, (last + duration - first) * info.time_base


class FileFrames:
    """The frames (h, w, 3) of a clip, without their times; each iteration reads from the start."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __iter__(self) -> Iterator[Frame]:
        with VideoReader(self.path) as reader:
            for timed in reader:
                yield timed.frame

"""Frames of a file without their times, and times without the frames."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

from av.error import FFmpegError

from rvedit.io.video.clip import Frame, VideoInfo
from rvedit.io.video.containers import open_container, video_stream
from rvedit.io.video.reader import VideoReader


def frame_times(info: VideoInfo) -> tuple[list[Fraction], Fraction]:
    """Return the times of a clip's frames and the end of the last one, in seconds since the first frame.

    Reads every packet of a video, but decodes none.
    """
    if info.kind != "video":
        return [n * info.time_base for n in range(info.num_frames)], info.num_frames * info.time_base
    begun: list[int] = []
    with open_container(info.path) as container, suppress(FFmpegError):
        for packet in container.demux(video_stream(container, info.path)):
            time = packet.dts if packet.pts is None else packet.pts
            if packet.size and not packet.is_discard and time is not None:
                begun.append(time)
    if len(begun) < info.num_frames:  # raw streams have no times
        return [n / info.frame_rate for n in range(info.num_frames)], info.num_frames / info.frame_rate
    begun = sorted(begun)[: info.num_frames]
    times = [(time - begun[0]) * info.time_base for time in begun]
    return times, max(Fraction(info.duration).limit_denominator(10**6), times[-1] + info.time_base)


class FileFrames:
    """The frames (h, w, 3) of a clip, without their times; each iteration reads from the start."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __iter__(self) -> Iterator[Frame]:
        with VideoReader(self.path) as reader:
            for timed in reader:
                yield timed.frame

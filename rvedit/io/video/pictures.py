"""From decoded frames to upright RGB frames: fields, transparency, colors, orientation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress

import numpy as np
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from rvedit.io.video.clip import FULL, SCALING, Frame, Frames, Lost, VideoInfo, orientation


def deinterlaced(frames: Iterable[VideoFrame | Lost]) -> Iterator[VideoFrame | Lost]:
    """Yield the frames with the same times; those that are flagged as interlaced are deinterlaced."""
    graph: Graph | None = None
    for frame in frames:
        if isinstance(frame, VideoFrame) and (graph or frame.interlaced_frame):
            graph = graph or _deinterlacer(frame)
            graph.push(frame)
            yield from _filtered(graph)
        else:
            yield frame
    if graph:
        graph.push(None)
        yield from _filtered(graph)


def _deinterlacer(first: VideoFrame) -> Graph:
    graph = Graph()
    time_base = first.time_base
    source = graph.add_buffer(
        width=first.width, height=first.height, format=first.format, time_base=time_base
    )
    one_frame_each = graph.add("bwdif", "mode=send_frame:deint=interlaced")
    same_times = graph.add("settb", str(time_base))
    return graph.link_nodes(source, one_frame_each, same_times, graph.add("buffersink"))


def _filtered(graph: Graph) -> Iterator[VideoFrame]:
    with suppress(BlockingIOError, EOFError):
        while True:
            yield graph.vpull()


def may_be_transparent(frame: VideoFrame) -> bool:
    """Return whether the frame's pixel format has transparency."""
    return frame.format.has_palette or any(part.is_alpha for part in frame.format.components)


def is_transparent(frame: VideoFrame) -> bool:
    """Return whether any pixel is transparent."""
    return may_be_transparent(frame) and bool(frame.to_ndarray(format="rgba")[..., 3].min() < 255)


def over_black(rgba: Frames) -> Frame:
    """Compose a frame (h, w, 4) over black."""
    alpha = rgba[..., 3:].astype(np.uint16)
    return ((rgba[..., :3] * alpha + 127) // 255).astype(np.uint8)


class PictureConverter:
    """Conversion of a clip's decoded frames."""

    def __init__(self, info: VideoInfo, threads: int) -> None:
        self._info, self._threads = info, threads
        self._reformat = VideoReformatter().reformat
        self._turn: tuple[bool, bool, bool] | None = None

    def convert(self, decoded: VideoFrame) -> Frame:
        """Return the frame as displayed: cropped, upright, RGB, full range."""
        # Read once: PyAV's side data and its frame reference each other, and hundreds of 4K frames would
        # stay in memory until Python's garbage collector runs.
        self._turn = self._turn or orientation(decoded)
        converted = self._reformat(
            decoded,
            format="rgba" if may_be_transparent(decoded) else "rgb24",
            src_colorspace=self._info.matrix,
            dst_colorspace=self._info.matrix,
            src_color_range=self._info.color_range,
            dst_color_range=FULL,
            interpolation=SCALING,
            threads=self._threads,
        )
        frame: Frame = np.asarray(converted.to_ndarray(), np.uint8)
        if frame.shape[2] == 4:
            frame = over_black(frame)
        left, right, top, bottom = self._info.crop
        frame = frame[top : frame.shape[0] - bottom, left : frame.shape[1] - right]
        swaps_axes, flips_x, flips_y = self._turn
        if swaps_axes:
            frame = frame.transpose(1, 0, 2)
        return np.ascontiguousarray(frame[:: -1 if flips_y else 1, :: -1 if flips_x else 1])

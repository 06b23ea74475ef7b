"""Outputs of `VideoWriter`: a container with encoded video and the source's sound and tags, or an image."""

from __future__ import annotations

import warnings
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.container import OutputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from PIL import Image

from rvedit.io.video.clip import (
    FULL,
    LIMITED,
    MATRICES,
    RGB,
    SCALING,
    UNSPECIFIED,
    Frame,
    VideoInfo,
    yuv_matrix,
)
from rvedit.io.video.copies import SourceCopy, muxer_options
from rvedit.io.video.gif import MIN_DELAY

CODECS = {
    ".mp4": "libx264",
    ".mov": "libx264",
    ".mkv": "libx264",
    ".webm": "libvpx-vp9",
    ".gif": "gif",
}

# Near where coding loss stops being visible, so that it is not mistaken for the edit.
_CRF = {"libx264": 16, "libvpx-vp9": 20}


class ImageSink:
    """Output of a single frame as .png or .jpg."""

    def __init__(self, temporary: Path) -> None:
        self._temporary = temporary

    def write(self, frame: Frame, pts: int, duration: int | None) -> None:
        """Write the image, without its time; raises ValueError for a second one."""
        if self._temporary.exists():
            raise ValueError("an image holds one frame")
        Image.fromarray(frame).save(self._temporary, quality=95, subsampling=0)

    def finish(self) -> None:
        """Do nothing: the image is complete."""

    def discard(self) -> None:
        """Do nothing: the image is closed."""


class ContainerSink:
    """Encoder and muxer that keep the source's times, color tags and audio.

    Raises FFmpegError (OSError for disk errors) if either fails.
    """

    def __init__(
        self, temporary: Path, like: VideoInfo, size: tuple[int, int], crf: int | None, preset: str
    ) -> None:
        suffix = temporary.suffix.lower()
        codec = CODECS[suffix]
        quality = str(crf if crf is not None else _CRF.get(codec))
        codec_options: dict[str, dict[str, str]] = {
            # No B-frames: packets are in display order, so the start needs no edit list, which some players
            # ignore, and MP4 keeps the last frame's duration; the file is somewhat larger. A short lookahead:
            # the default of 40 frames takes 0.7 GB at 4K.
            "libx264": {"crf": quality, "preset": preset, "bf": "0", "rc-lookahead": "8"},
            "libvpx-vp9": {"crf": quality, "b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"},
            # Each frame has its own palette: pixels whose index stays the same may have changed.
            "gif": {"gifflags": "0"},
        }
        self._like = like
        self._is_gif = codec == "gif"
        # The source's time base keeps times exact; GIF has its own.
        self._time_base = Fraction(1, 100) if self._is_gif else like.time_base
        self._default_duration = max(1, round(1 / (like.frame_rate * like.time_base)))  # ticks
        self._first_pts = self._delay = 0  # ticks
        self._gif_pts = -MIN_DELAY
        self._has_dropped = False
        self._end = Fraction(0)  # seconds
        self._count = 0
        self._durations: dict[int, int] = {}  # ticks by pts, of the frames inside the encoder
        self._copy: SourceCopy | None = None
        self._reformatter = VideoReformatter()
        self._color_range, colorspace = _color_tags(like, size)

        self._output: OutputContainer = av.open(f"file:{temporary}", "w", options=muxer_options(suffix))
        try:
            video = self._output.add_stream(codec, rate=like.frame_rate, options=codec_options[codec])
            self._video = cast(VideoStream, video)
            context = self._video.codec_context
            context.width, context.height = size
            context.pix_fmt = self._pix_fmt = _pix_fmt(codec, size)
            if self._pix_fmt == "yuv444p":
                message = f"{like.path}: has an odd size ({size[0]}x{size[1]}), so its H.264 is 4:4:4, which "
                message += "QuickTime, Safari and most hardware decoders do not play; write .webm for them"
                warnings.warn(message, stacklevel=2)
            context.time_base = self._video.time_base = self._time_base
            if not self._is_gif:
                context.color_range, context.colorspace = self._color_range, colorspace
                context.color_primaries, context.color_trc = like.color_primaries, like.color_trc
            if like.pixel_aspect is not None:
                context.sample_aspect_ratio = like.pixel_aspect
            if like.streams:
                self._copy = SourceCopy(like, self._output, suffix, self._video)
            self._output.start_encoding()
        except BaseException:
            self.discard()
            raise

    def write(self, frame: Frame, pts: int, duration: int | None) -> None:
        """Encode a frame, and copy the audio up to its time."""
        if not self._count:
            self._first_pts = pts
            # Containers drop times before zero: then video and audio are delayed together.
            self._delay = max(0, -pts)
        start = (pts + self._delay) * self._like.time_base
        duration = duration or self._default_duration
        self._end = start + duration * self._like.time_base
        self._count += 1
        if self._is_gif:
            times = self._gif_times(pts, duration)
            if times is None:
                self._warn_of_dropped_frames()
                return
            pts, duration = times
        else:
            pts += self._delay
        self._durations[pts] = duration

        converted = self._convert(frame)
        converted.pts, converted.time_base = pts, self._time_base
        for packet in self._video.encode(converted):
            self._mux(packet)
        if self._copy is not None:  # frame by frame, so that the file is interleaved
            self._copy.delay = self._delay * self._like.time_base
            self._copy.copy(until=start)

    def finish(self) -> None:
        """Flush the encoder, copy the rest of the audio and write the container's index."""
        for packet in self._video.encode(None):
            self._mux(packet)
        if self._copy is not None:
            # An edit with fewer frames than its source gets the audio up to its end.
            is_complete = self._count >= self._like.num_frames
            self._copy.copy(until=None if is_complete else self._end)
        self._output.close()

    def discard(self) -> None:
        """Close the files, finished or not."""
        if self._copy is not None:
            self._copy.close()
        with suppress(FFmpegError, OSError, ValueError):  # raised on closing an unfinished file
            self._output.close()

    def _gif_times(self, pts: int, duration: int) -> tuple[int, int] | None:
        """Return pts and duration in 1/100 s from the first frame; rounding times avoids drift.

        None for a frame that would be late by more than 1/100 s: more come than GIF can show.
        """
        scale = self._like.time_base / self._time_base
        time = (pts - self._first_pts) * scale
        earliest = self._gif_pts + MIN_DELAY
        if earliest - time > 1:
            return None
        self._gif_pts = max(earliest, round(time))
        return self._gif_pts, max(MIN_DELAY, round(duration * scale))

    def _warn_of_dropped_frames(self) -> None:
        if not self._has_dropped:
            self._has_dropped = True
            message = f"{self._like.path}: GIF shows at most 50 frames per second, so some are left out"
            warnings.warn(f"{message}; write .mp4 to keep all", stacklevel=3)

    def _convert(self, frame: Frame) -> VideoFrame:
        if self._is_gif:
            return _quantize(frame)
        return self._reformatter.reformat(
            VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"),
            format=self._pix_fmt,
            src_colorspace=self._like.matrix,
            dst_colorspace=self._like.matrix,
            src_color_range=FULL,
            dst_color_range=self._color_range or LIMITED,
            interpolation=SCALING,
        )

    def _mux(self, packet: Packet[Any]) -> None:
        # Encoders drop durations; without the last one the clip would end a frame early.
        if packet.pts is not None:
            packet.duration = self._durations.pop(packet.pts, packet.duration)
        self._output.mux(packet)


def _pix_fmt(codec: str, size: tuple[int, int]) -> str:
    if codec == "gif":
        return "pal8"
    # H.264 with 4:2:0 needs even sizes; VP9 supports it at any size.
    is_odd = size[0] % 2 or size[1] % 2
    return "yuv444p" if codec == "libx264" and is_odd else "yuv420p"


def _color_tags(like: VideoInfo, size: tuple[int, int]) -> tuple[int, int]:
    """Return the color range and matrix to tag: the source's, or explicit ones if players would err."""
    if like.colorspace == RGB:
        return LIMITED, like.matrix
    has_same_default = like.colorspace == UNSPECIFIED and yuv_matrix(UNSPECIFIED, *size) == like.matrix
    if like.colorspace in MATRICES or has_same_default:
        return like.color_range, like.colorspace
    return like.color_range, like.matrix


def _quantize(frame: Frame) -> VideoFrame:
    """Quantize a frame to its own palette of 256 colors."""
    image = Image.fromarray(frame).quantize(256)
    colors = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    argb = np.full((256, 4), 255, np.uint8)
    argb[: len(colors), 1:] = colors
    indices_and_palette: Any = (np.array(image), argb)
    return VideoFrame.from_ndarray(indices_and_palette, format="pal8")

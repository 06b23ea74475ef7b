"""Where a writer's frames go: into a container, through an encoder and beside the sound, or into an image."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.container import OutputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Stream
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

CODECS = {
    ".mp4": "libx264",
    ".mov": "libx264",
    ".mkv": "libx264",
    ".webm": "libvpx-vp9",
    ".gif": "gif",
}

# Near where a coding loss stops being visible, so that it is not taken for the edit's.
_CRF = {"libx264": 16, "libvpx-vp9": 20}
_MP4_OPTIONS = {
    "movflags": "+faststart",  # plays before it is fully loaded
    "movie_timescale": "90000",  # keeps a start after zero to 11 us; the muxer's default is 1 ms
}


class PictureSink:
    """A single frame, as .png or .jpg."""

    def __init__(self, temporary: Path) -> None:
        self._temporary = temporary

    def write(self, frame: Frame, pts: int, duration: int | None) -> None:
        """Write the image and drop its time; raises ValueError for a second one."""
        if self._temporary.exists():
            raise ValueError("an image holds one frame")
        Image.fromarray(frame).save(self._temporary, quality=95, subsampling=0)

    def finish(self) -> None:
        """Do nothing: the image is whole."""

    def discard(self) -> None:
        """Do nothing: the image is closed."""


class ContainerSink:
    """An encoder and a muxer that keep the source's times, colour tags and sound.

    Raises FFmpegError (an OSError where it is the disk's) for what either refuses.
    """

    def __init__(
        self, temporary: Path, like: VideoInfo, size: tuple[int, int], crf: int | None, preset: str
    ) -> None:
        suffix = temporary.suffix.lower()
        codec = CODECS[suffix]
        quality = str(crf if crf is not None else _CRF.get(codec))
        codec_options: dict[str, dict[str, str]] = {
            # Without B-frames packets come in the order of their times: the file is somewhat larger, but its
            # start needs no edit list, which some players ignore, and MP4 keeps the last frame's duration.
            # The encoder looks few frames ahead: the usual 40 are 0.7 GB at 4K.
            "libx264": {"crf": quality, "preset": preset, "bf": "0", "rc-lookahead": "8"},
            "libvpx-vp9": {"crf": quality, "b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"},
            "gif": {},
        }
        self._like = like
        self._is_gif = codec == "gif"
        # The source's ticks, so that every time is written as it was read; a GIF has its own.
        self._time_base = Fraction(1, 100) if self._is_gif else like.time_base
        self._usual = max(1, round(1 / (like.frame_rate * like.time_base)))  # ticks a frame lasts if unsaid
        self._first_pts = self._delay = 0  # ticks
        self._gif_pts = -1
        self._end = Fraction(0)  # seconds
        self._count = 0
        self._durations: dict[int, int] = {}  # ticks by pts, of the few frames inside the encoder
        self._audio: _AudioCopy | None = None
        self._reformatter = VideoReformatter()
        self._color_range, colorspace = _coded_colors(like, size)

        options = _MP4_OPTIONS if suffix in (".mp4", ".mov") else {}
        self._output: OutputContainer = av.open(f"file:{temporary}", "w", options=options)
        try:
            video = self._output.add_stream(codec, rate=like.frame_rate, options=codec_options[codec])
            self._video = cast(VideoStream, video)
            context = self._video.codec_context
            context.width, context.height = size
            context.pix_fmt = self._pix_fmt = _pix_fmt(codec, size)
            context.time_base = self._video.time_base = self._time_base
            if not self._is_gif:
                context.color_range, context.colorspace = self._color_range, colorspace
                context.color_primaries, context.color_trc = like.color_primaries, like.color_trc
            if like.pixel_aspect is not None:
                context.sample_aspect_ratio = like.pixel_aspect
            if like.has_audio:
                self._audio = _AudioCopy(like.path, self._output, suffix)
            self._output.start_encoding()
        except BaseException:
            self.discard()
            raise

    def write(self, frame: Frame, pts: int, duration: int | None) -> None:
        """Encode a frame, and copy the sound up to its time."""
        if not self._count:
            self._first_pts = pts
            # A container drops what is shown before zero: there all, the sound too, moves later together.
            self._delay = max(0, -pts)
        start = (pts + self._delay) * self._like.time_base
        duration = duration or self._usual
        self._end = start + duration * self._like.time_base
        self._count += 1
        if self._is_gif:
            pts, duration = self._gif_times(pts, duration)
        else:
            pts += self._delay
        self._durations[pts] = duration

        coded = self._coded(frame)
        coded.pts, coded.time_base = pts, self._time_base
        for packet in self._video.encode(coded):
            self._mux(packet)
        if self._audio is not None:  # as we go, so that the file is interleaved and nothing piles up
            self._audio.delay = self._delay * self._like.time_base
            self._audio.copy(until=start)

    def finish(self) -> None:
        """Flush the encoder, copy the rest of the sound and write the container's index."""
        for packet in self._video.encode(None):
            self._mux(packet)
        if self._audio is not None:
            # All frames get all of the sound; a shorter edit does not go on as sound alone.
            is_whole = self._count >= self._like.num_frames
            self._audio.copy(until=None if is_whole else self._end)
        self._output.close()

    def discard(self) -> None:
        """Let go of the files, finished or not."""
        if self._audio is not None:
            self._audio.close()
        with suppress(FFmpegError, OSError, ValueError):  # what an unfinished file says on closing
            self._output.close()

    def _gif_times(self, pts: int, duration: int) -> tuple[int, int]:
        """In hundredths from the first frame; rounding the times, not the delays, adds up to no drift."""
        scale = self._like.time_base / self._time_base
        self._gif_pts = max(self._gif_pts + 1, round((pts - self._first_pts) * scale))
        return self._gif_pts, max(1, round(duration * scale))

    def _coded(self, frame: Frame) -> VideoFrame:
        if self._is_gif:
            return _paletted(frame)
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
        # Encoders drop durations; without the last one a clip ends a frame early.
        if packet.pts is not None:
            packet.duration = self._durations.pop(packet.pts, packet.duration)
        self._output.mux(packet)


class _AudioCopy:
    """Moves a source's sound packets, as they are, into an output; warns of those that it cannot hold."""

    def __init__(self, source: Path, output: OutputContainer, suffix: str) -> None:
        self.delay = Fraction(0)  # seconds to add to every time
        self._source, self._output = source, output
        self._input = av.open(f"file:{source}", metadata_errors="replace")
        self._copies: dict[int, Stream] = {}
        for stream in self._input.streams.audio:
            # Of a codec that FFmpeg does not know there is no context.
            kind = stream.codec_context.name if stream.codec_context else "unknown"
            try:
                copy = output.add_stream_from_template(stream)
            except ValueError:
                warnings.warn(
                    f"{source}: its {kind} sound does not go into {suffix} "
                    "and is left out; write .mkv to keep it",
                    stacklevel=2,
                )
                continue
            if stream.language:
                copy.metadata["language"] = stream.language
            self._copies[stream.index] = copy
        self._packets = self._read()
        self._next = next(self._packets, None)

    def copy(self, *, until: Fraction | None) -> None:
        """Move the packets that start up to `until` seconds, or all."""
        while self._next is not None:
            packet, time = self._next
            if until is not None and time * packet.time_base + self.delay > until:
                return
            ticks = round(self.delay / packet.time_base)
            packet.dts = time + ticks
            packet.pts = None if packet.pts is None else packet.pts + ticks
            packet.stream = self._copies[packet.stream_index]
            self._output.mux(packet)
            self._next = next(self._packets, None)

    def close(self) -> None:
        """Let go of the source."""
        self._packets.close()
        self._input.close()

    def _read(self) -> Generator[tuple[Packet[Any], int], None, None]:
        """Yield the packets with their decoding times."""
        wanted = tuple(stream for stream in self._input.streams.audio if stream.index in self._copies)
        if not wanted:
            return
        problem = None
        try:
            for packet in self._input.demux(wanted):
                if packet.is_corrupt:
                    problem = "a packet is cut off"
                    break
                if packet.size and packet.dts is not None:
                    yield packet, packet.dts
        except FFmpegError as error:
            problem = error.strerror
        if problem is not None:
            warnings.warn(f"{self._source}: its sound ends early ({problem})", stacklevel=2)


def _pix_fmt(codec: str, size: tuple[int, int]) -> str:
    if codec == "gif":
        return "pal8"
    # H.264 counts a 4:2:0 picture's size in pairs of pixels, so an odd size must be 4:4:4 to stay as it is.
    # mpv, VLC and browsers that decode in software play that; QuickTime, Safari and most hardware decoders
    # do not: for them there is .webm, as VP9 takes 4:2:0 at any size.
    is_odd = size[0] % 2 or size[1] % 2
    return "yuv444p" if codec == "libx264" and is_odd else "yuv420p"


def _coded_colors(like: VideoInfo, size: tuple[int, int]) -> tuple[int, int]:
    """The range and colour space to tag: the source's, or explicit ones where those would mislead."""
    if like.colorspace == RGB:
        return LIMITED, like.matrix
    is_read_alike = like.colorspace == UNSPECIFIED and yuv_matrix(UNSPECIFIED, *size) == like.matrix
    if like.colorspace in MATRICES or is_read_alike:
        return like.color_range, like.colorspace
    return like.color_range, like.matrix


def _paletted(frame: Frame) -> VideoFrame:
    """Put a frame in its own 256 best colours."""
    image = Image.fromarray(frame).quantize(256)
    colors = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    argb = np.full((256, 4), 255, np.uint8)
    argb[: len(colors), 1:] = colors
    pair: Any = (np.array(image), argb)  # what PyAV takes for this one format
    return VideoFrame.from_ndarray(pair, format="pal8")

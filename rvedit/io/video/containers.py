"""Describe and decode video files, by PyAV."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from rvedit.io.errors import UserError
from rvedit.io.video.clip import (
    DEFAULT_RATE,
    FULL,
    RGB,
    SCALING,
    Frame,
    TimedFrame,
    TruncatedError,
    Turn,
    VideoInfo,
    orientation,
)


def open_container(path: Path) -> InputContainer:
    """Open a video file. Raises UserError if it is none."""
    try:
        # Without "file:" FFmpeg takes a name with a colon, or "-", for a protocol.
        container = av.open(f"file:{path}", metadata_errors="replace")
    except FFmpegError as error:
        raise UserError(
            f"{path}: not a video that can be read ({error.strerror}); "
            "it is damaged, ends before its index, or has another format"
        ) from error
    if container.format.name == "tty":  # FFmpeg renders text files as a terminal's screen
        container.close()
        raise UserError(f"{path}: a text file, not a video; give a video, an image or a folder of images")
    return container


def video_stream(container: InputContainer, path: Path) -> VideoStream:
    """Return the stream of the video itself, not of a cover image. Raises UserError."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:  # not a cover image
            if stream.codec_context is None:
                raise UserError(f"{path}: no decoder for its video; convert it to H.264 first")
            return stream
    raise UserError(f"{path}: has no video stream; give a file with video, not only audio")


def probe_container(path: Path) -> VideoInfo:
    """Describe a video file: reads every packet, decodes one frame. Raises UserError."""
    with open_container(path) as container:
        video = video_stream(container, path)
        video.codec_context.thread_count = 1  # only one frame is decoded
        first: VideoFrame | None = None
        num_packets, num_frames, truncated = 0, 0, False
        start: int | None = None
        end = furthest = Fraction(0)  # seconds: of the video, and of any stream
        frame_rate = video.average_rate or video.guessed_rate or DEFAULT_RATE
        try:
            for packet in container.demux():  # of every stream: the longest gives the declared length
                is_video = packet.stream_index == video.index
                if is_video and packet.is_corrupt:
                    truncated = True
                    break
                if is_video and first is None:
                    first = next(iter(video.decode(packet)), None)
                num_packets += is_video and packet.size > 0
                if not packet.size or packet.is_discard:
                    continue
                num_frames += is_video
                time = packet.dts if packet.pts is None else packet.pts
                if time is None:  # raw streams have no times
                    continue
                packet_end = (time + (packet.duration or 0)) * packet.time_base
                furthest = max(furthest, packet_end)
                if is_video:
                    start = time if start is None else min(start, time)
                    end = max(end, packet_end if packet.duration else packet_end + 1 / frame_rate)
        except FFmpegError:
            truncated = True
        if first is None or video.time_base is None:
            raise UserError(f"{path}: no frame decodes; the file is empty or damaged, get another copy")

        begin = (start or 0) * video.time_base
        end = end if start is not None else num_frames / frame_rate
        if container.format.name.startswith("mov"):  # its index is exact, its durations are not
            truncated = truncated or num_packets < len(video.index_entries)
        else:
            # Muxers round and pad the duration; a real loss of that size also shows as a corrupt packet.
            slack = max(2 / frame_rate, Fraction(1, 4))
            truncated = truncated or _missing_seconds(container, video, begin, end, furthest) > slack

        swaps_axes = orientation(first)[0]
        width, height = (first.height, first.width) if swaps_axes else (first.width, first.height)
        aspect = video.sample_aspect_ratio or None
        context, is_rgb = video.codec_context, first.format.is_rgb or first.format.has_palette
        is_full = is_rgb or first.format.name.startswith("yuvj")
        return VideoInfo(
            path=path,
            kind="video",
            width=width,
            height=height,
            num_frames=num_frames,
            frame_rate=frame_rate,
            time_base=video.time_base,
            duration=float(end - begin),
            color_range=FULL if is_full else int(first.color_range),
            colorspace=RGB if is_rgb else int(first.colorspace),
            color_primaries=int(context.color_primaries),
            color_trc=int(context.color_trc),
            pix_fmt=first.format.name,
            pixel_aspect=1 / aspect if aspect and swaps_axes else aspect,
            has_audio=bool(container.streams.audio),
            truncated=truncated,
        )


def _missing_seconds(
    container: InputContainer, video: VideoStream, begin: Fraction, end: Fraction, furthest: Fraction
) -> Fraction:
    """Return how far the declared duration (of the video, or else of the longest stream) exceeds the data."""
    if video.duration is not None and video.time_base is not None:
        return video.duration * video.time_base - (end - begin)
    tag = _seconds(video.metadata.get("DURATION", ""))
    if tag is not None:  # of Matroska, counted from zero
        return tag - end
    return Fraction(container.duration or 0, 1_000_000) - max(furthest, end)


def decode_container(
    info: VideoInfo, wanted: Collection[int] | None, threads: int
) -> Iterator[TimedFrame | None]:
    """Yield the wanted frames, and None for each other one.

    Raises TruncatedError after the last intact frame of a truncated clip.
    """
    with open_container(info.path) as container:
        video = video_stream(container, info.path)
        video.codec_context.thread_count = threads
        convert = partial(VideoReformatter().reformat, threads=threads)
        default_duration = max(1, round(1 / (info.frame_rate * info.time_base)))  # ticks
        pts: int | None = None
        duration = default_duration
        turn: Turn | None = None
        for index, decoded in enumerate(_decode_packets(container, video)):
            # Read once: PyAV's side data and its frame reference each other, and hundreds of 4K frames would
            # stay in memory until Python's garbage collector runs.
            turn = orientation(decoded) if turn is None else turn
            # Files may omit or repeat times; a writer needs them to increase.
            expected = 0 if pts is None else pts + duration
            time = expected if decoded.pts is None else decoded.pts
            pts = time if pts is None or time > pts else pts + 1
            duration = decoded.duration or default_duration
            if wanted is None or index in wanted:
                yield TimedFrame(_to_rgb(decoded, info, turn, convert), pts, decoded.duration or None)
            else:
                yield None
        if info.truncated:
            raise TruncatedError("its data end early")


def _decode_packets(container: InputContainer, video: VideoStream) -> Iterator[VideoFrame]:
    """Yield the decoder's frames up to damage, then raise TruncatedError (frame threads report it late)."""
    last_packet = last_frame = -1  # latest times in ticks
    for packet in container.demux(video):
        problem = "its data are cut off" if packet.is_corrupt else None
        frames: list[VideoFrame] = []
        if problem is None:
            try:
                frames = video.decode(packet)
            except FFmpegError as error:
                problem = f"the next one does not decode: {error.strerror}"
        if problem is not None:
            yield from _flush(video, packet.pts)
            raise TruncatedError(problem)
        if packet.size and packet.pts is not None and not packet.is_discard:
            last_packet = max(last_packet, packet.pts)
        for frame in frames:
            if frame.is_corrupt:
                raise TruncatedError("the next one is damaged")
            last_frame = max(last_frame, last_packet if frame.pts is None else frame.pts)
            yield frame
    if last_frame < last_packet:
        raise TruncatedError("its last frames do not decode")


def _flush(video: VideoStream, before: int | None) -> Iterator[VideoFrame]:
    """Yield the decoder's remaining intact frames up to the time of the damage."""
    with suppress(FFmpegError, EOFError):
        for frame in video.decode(None):
            if frame.is_corrupt or before is None or frame.pts is None or frame.pts >= before:
                return
            yield frame


def _to_rgb(decoded: VideoFrame, info: VideoInfo, turn: Turn, convert: Callable[..., VideoFrame]) -> Frame:
    rgb = convert(
        decoded,
        format="rgb24",
        src_colorspace=info.matrix,
        dst_colorspace=info.matrix,
        src_color_range=info.color_range,
        dst_color_range=FULL,
        interpolation=SCALING,
    )
    frame: Frame = np.asarray(rgb.to_ndarray(), np.uint8)
    swaps_axes, flips_x, flips_y = turn
    if swaps_axes:
        frame = frame.transpose(1, 0, 2)
    return np.ascontiguousarray(frame[:: -1 if flips_y else 1, :: -1 if flips_x else 1])


def _seconds(clock: str) -> Fraction | None:
    """Parse Matroska's "00:01:02.500000000" as seconds, or return None."""
    match = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", clock.strip())
    return None if match is None else int(match[1]) * 3600 + int(match[2]) * 60 + Fraction(match[3])

"""Describe and decode video files, by PyAV."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from rvedit.io.errors import UserError
from rvedit.io.video.clip import (
    DEFAULT_RATE,
    FULL,
    RGB,
    Lost,
    TimedFrame,
    TruncatedError,
    VideoInfo,
    orientation,
)
from rvedit.io.video.clock import ClockSurvey, Extent
from rvedit.io.video.cropping import container_crop
from rvedit.io.video.gif import demux
from rvedit.io.video.images import probe_images
from rvedit.io.video.pictures import PictureConverter, deinterlaced, is_transparent
from rvedit.io.video.streams import (
    choose_video,
    describe,
    is_avif_still,
    is_broadcast,
    is_cut_off,
    is_still,
    open_container,
    picture_decoder,
)


def probe_container(path: Path) -> VideoInfo:
    """Describe a video file: reads every packet, decodes one frame. Raises UserError."""
    with open_container(path) as container:
        if is_avif_still(container):  # Pillow joins tiles and applies transparency
            return probe_images(path)
        video = choose_video(container, path)
        survey = _PacketSurvey(container, video)
        survey.read()
        first = survey.first
        if first is None or video.time_base is None:
            raise UserError(f"{path}: no frame decodes; the file is empty or damaged, get another copy")

        clock = survey.times.clock()
        shown = survey.times.corrected(clock, video.index)
        frame_rate = _frame_rate(video, survey.num_frames, shown)
        duration = survey.num_frames / frame_rate
        if shown is not None:
            end = shown.end if shown.end > shown.last else shown.last + 1 / frame_rate
            duration = end - shown.start
        ends_early = survey.ends_early
        if container.format.name.startswith("mov"):  # its index is exact, its durations are not
            ends_early = ends_early or survey.num_packets < len(video.index_entries)
        elif not is_broadcast(container):  # its duration is estimated from its end
            # Muxers round and pad the duration; a real loss of that size also shows as a corrupt packet.
            slack = max(2 / frame_rate, Fraction(1, 4))
            ends_early = ends_early or _missing_seconds(container, video, duration, survey.times) > slack

        crop = container_crop(container, video)
        width = first.width - crop.left - crop.right
        height = first.height - crop.top - crop.bottom
        swaps_axes = orientation(first)[0]
        if swaps_axes:
            width, height = height, width
        aspect = video.sample_aspect_ratio or None
        context, is_rgb = video.codec_context, first.format.is_rgb or first.format.has_palette
        is_full = is_rgb or first.format.name.startswith("yuvj")
        return VideoInfo(
            path=path,
            kind="image" if is_still(container) and survey.num_frames == 1 else "video",
            width=width,
            height=height,
            num_frames=survey.num_frames,
            frame_rate=frame_rate,
            time_base=video.time_base,
            duration=float(duration),
            color_range=FULL if is_full else int(first.color_range),
            colorspace=RGB if is_rgb else int(first.colorspace),
            color_primaries=int(context.color_primaries),
            color_trc=int(context.color_trc),
            pix_fmt=first.format.name,
            pixel_aspect=1 / aspect if aspect and swaps_axes else aspect,
            has_audio=bool(container.streams.audio),
            truncated=survey.is_damaged or ends_early,
            ends_early=ends_early,
            has_alpha=is_transparent(first),
            is_interlaced=first.interlaced_frame,
            clock=clock,
            streams=describe(container.streams, video),
            crop=crop,
        )


class _PacketSurvey:
    """What the packets of a file tell, and its first frame."""

    def __init__(self, container: InputContainer, video: VideoStream) -> None:
        self._container, self._video = container, video
        self.times = ClockSurvey(container, video)
        self.first: VideoFrame | None = None
        self.num_packets = self._num_timed = self._num_untimed = 0
        self.is_damaged = self.ends_early = False
        self._early: list[int | None] = []  # times of packets until the first frame is decoded
        self._decoder = picture_decoder(video)
        self._decoder.thread_count = 1  # only one frame is decoded

    def read(self) -> None:
        """Read all packets."""
        try:
            for packet in demux(self._container):
                part = self.times.add(packet)
                if packet.stream.index == self._video.index:
                    self._add(packet, part)
        except FFmpegError:
            self.ends_early = True
        if self.first is not None and self.first.pts is not None:
            self.times.start_at(self._video.index, self.first.pts)

    def _add(self, packet: Packet[Any], part: int) -> None:
        self.is_damaged = self.is_damaged or packet.is_corrupt
        if is_cut_off(packet):
            return
        self.num_packets += packet.size > 0
        if packet.size and not packet.is_discard:
            self._count(packet, part)
        if self.first is None:
            try:
                self.first = next(iter(self._decoder.decode(packet)), None)
            except FFmpegError:
                self.is_damaged = True

    def _count(self, packet: Packet[Any], part: int) -> None:
        if packet.pts is None and packet.dts is None:  # the second field of a frame, or a file without times
            self._num_untimed += 1
        elif self.first is None:
            self._early.append(packet.pts)
        else:
            self._num_timed += part > 0 or self._is_decoded(packet.pts)

    @property
    def num_frames(self) -> int:
        """Return the number of packets that show a frame."""
        return self._num_timed + sum(map(self._is_decoded, self._early)) or self._num_untimed

    def _is_decoded(self, pts: int | None) -> bool:
        """Return whether a packet is not before the first frame, as where a recording starts amid frames."""
        return pts is None or self.first is None or self.first.pts is None or pts >= self.first.pts


def _frame_rate(video: VideoStream, num_frames: int, shown: Extent | None) -> Fraction:
    """Return the rate that the container states, or that of the packets' times if it fits them better.

    Containers may state a time base, such as 60000, as a rate.
    """
    stated = [rate for rate in (video.average_rate, video.guessed_rate) if rate]
    if shown is not None and num_frames > 1 and shown.last > shown.start:
        measured = (num_frames - 1) / (shown.last - shown.start)
    elif shown is not None and shown.end > shown.start:
        measured = num_frames / (shown.end - shown.start)
    else:
        return stated[0] if stated else DEFAULT_RATE
    near = [rate for rate in stated if 2 / 3 < rate / measured < 3 / 2]
    return min(near, key=lambda rate: abs(rate - measured), default=measured.limit_denominator(10_000))


def _missing_seconds(
    container: InputContainer, video: VideoStream, duration: Fraction, survey: ClockSurvey
) -> Fraction:
    """Return how far the declared duration (of the video, or else of the longest stream) exceeds the data."""
    if video.duration is not None and video.time_base is not None:
        return video.duration * video.time_base - duration
    ends = {index: extent.end for index, extent in survey.extents()[0].items()}
    tag = _seconds(video.metadata.get("DURATION", ""))
    if tag is not None:  # of Matroska, counted from zero
        return tag - ends[video.index]
    return Fraction(container.duration or 0, 1_000_000) - max(ends.values(), default=duration)


def decode_container(
    info: VideoInfo, wanted: Collection[int] | None, threads: int
) -> Iterator[TimedFrame | Lost | None]:
    """Yield the wanted frames, None for each other one, and what is lost between them.

    Raises TruncatedError after the last intact frame of a clip that ends early.
    """
    converter = PictureConverter(info, threads)
    index = 0
    for decoded in deinterlaced(_timed_frames(info, threads)):
        if isinstance(decoded, Lost):
            yield decoded
            continue
        if wanted is None or index in wanted:
            yield TimedFrame(converter.convert(decoded), decoded.pts or 0, decoded.duration or None)
        else:
            yield None
        index += 1


def decode_times(info: VideoInfo) -> Iterator[tuple[int, int]]:
    """Yield pts and duration, in ticks, of the frames of `decode_container`, up to where they end early."""
    with suppress(TruncatedError):
        for decoded in _timed_frames(info, threads=0):
            if not isinstance(decoded, Lost):
                yield decoded.pts or 0, decoded.duration or _default_duration(info)


def _default_duration(info: VideoInfo) -> int:
    """Return the duration of a frame in ticks."""
    return max(1, round(1 / (info.frame_rate * info.time_base)))


def _timed_frames(info: VideoInfo, threads: int) -> Iterator[VideoFrame | Lost]:
    """Yield the decoder's frames with times that increase, as a writer needs them."""
    pts: int | None = None
    for decoded in _decode_packets(info, threads):
        if isinstance(decoded, VideoFrame):
            # Files may omit or repeat times.
            expected = 0 if pts is None else pts + _default_duration(info)
            time = expected if decoded.pts is None else decoded.pts
            pts = time if pts is None or time > pts else pts + 1
            decoded.pts = pts
        yield decoded


def _decode_packets(info: VideoInfo, threads: int) -> Iterator[VideoFrame | Lost]:
    """Yield the decoder's intact frames at their corrected times, and what is lost between them.

    Without signs of damage, a packet without a frame and a pause are not a loss.
    """
    step = _default_duration(info)
    is_damaged, reason = info.truncated, "the next one does not decode"
    latest = -1  # time of a packet, in ticks
    end: int | None = None  # of the frame before
    with open_container(info.path) as container:
        video = choose_video(container, info.path)
        decoder = picture_decoder(video)
        decoder.thread_count = threads
        unseen: set[int] = set()  # times of packets whose frame has not been decoded
        for packet in info.clock.corrected_packets(container, video):
            if packet.stream.index != video.index:
                continue
            if packet.pts is not None and packet.size and not packet.is_discard:
                latest = max(latest, packet.pts)
                unseen.add(packet.pts)
            if is_cut_off(packet):
                continue
            try:
                frames = decoder.decode(packet)
            except FFmpegError as error:
                is_damaged, reason = True, f"the next one does not decode: {error.strerror}"
                if info.clock.is_in_order or packet.pts is None:
                    unseen.discard(min(unseen, default=0))
                    yield Lost(reason)
                continue
            for frame in frames:
                if info.clock.is_in_order:
                    frame.pts = min(unseen, default=None)
                if frame.pts is not None:
                    skipped = {time for time in unseen if time < frame.pts}
                    unseen -= {frame.pts, *skipped}
                    pause = 0 if end is None else frame.pts - end
                    num_lost = max(len(skipped), int(pause / step + 0.1))
                    if is_damaged and num_lost:
                        yield Lost(reason, num_lost)
                    end = frame.pts + (frame.duration or step)
                if frame.is_corrupt:
                    is_damaged = True
                    yield Lost("the next one is damaged")
                else:
                    yield frame
    if info.ends_early:
        raise TruncatedError("its data end early")
    if end is not None and latest >= end:
        raise TruncatedError("its last frames do not decode")


def _seconds(clock: str) -> Fraction | None:
    """Parse Matroska's "00:01:02.500000000" as seconds, or return None."""
    match = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", clock.strip())
    return None if match is None else int(match[1]) * 3600 + int(match[2]) * 60 + Fraction(match[3])

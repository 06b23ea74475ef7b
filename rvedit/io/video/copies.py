"""What an output takes over from its source, unchanged: sound, subtitles, chapters and tags."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Generator, Iterable, Iterator
from contextlib import suppress
from fractions import Fraction
from io import BytesIO
from itertools import islice
from typing import Any

import av
from av.container import InputContainer, OutputContainer
from av.error import FFmpegError, InvalidDataError
from av.packet import Packet
from av.stream import Stream
from av.video.stream import VideoStream

from rvedit.io.video.clip import TruncatedError, VideoInfo
from rvedit.io.video.streams import choose_video, codec_name, is_cut_off, open_container, title

FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm", ".gif": "gif"}
MP4_SUFFIXES = (".mp4", ".mov")
_NUM_TRIED = 300  # packets
# Tags that describe the file, not the clip; the time code is written by itself.
_FILE_TAGS = {"major_brand", "minor_version", "compatible_brands", "encoder", "software", "duration"} | {
    "timecode"
}


def held_streams(info: VideoInfo, suffix: str) -> set[int]:
    """Return the streams, beside the video, that a container holds so that common players play them.

    Tries to write each one's header and first packets in memory.
    """
    if suffix not in FORMATS:
        return set()
    # FFmpeg writes PCM by ISO 23003-5, and browsers and QuickTime are silent.
    without_pcm = suffix == ".mp4" and info.path.suffix.lower() != ".mp4"
    with open_container(info.path) as source:
        streams = [stream for stream in source.streams if stream.type in ("audio", "subtitle", "attachment")]
        packets: dict[int, list[Packet[Any]]] = {stream.index: [] for stream in streams}
        with suppress(TruncatedError):
            for packet in _read_packets(info, source, packets, _NUM_TRIED):
                packets[packet.stream.index].append(packet)
        return {
            stream.index
            for stream in streams
            if not (without_pcm and codec_name(stream).startswith("pcm_"))
            and _fits(stream, packets[stream.index], suffix)
        }


def _read_packets(
    info: VideoInfo, source: InputContainer, indices: Collection[int], limit: int | None = None
) -> Iterator[Packet[Any]]:
    """Yield the packets of some streams, among the first `limit` of all, with times that a muxer accepts.

    Raises TruncatedError where their data end early.
    """
    if not indices:
        return
    latest: dict[int, int] = {}  # decoding time in ticks, by stream index
    video = choose_video(source, info.path)
    try:
        for packet in islice(info.clock.corrected_packets(source, video), limit):
            index = packet.stream.index
            if index not in indices or packet.dts is None or not packet.size:
                continue
            if is_cut_off(packet):
                raise TruncatedError("a packet is cut off")
            if packet.dts < latest.get(index, packet.dts):
                packet.pts = packet.dts = latest[index] + 1
            latest[index] = packet.dts
            yield packet
    except FFmpegError as error:
        raise TruncatedError(error.strerror) from error


def _fits(stream: Stream, packets: Iterable[Packet[Any]], suffix: str) -> bool:
    if stream.type == "attachment" and suffix != ".mkv":
        return False  # FFmpeg's WebM muxer drops them
    try:
        with av.open(BytesIO(), "w", format=FORMATS[suffix]) as output:
            copy = output.add_stream_from_template(stream)
            output.start_encoding()
            are_intact = [_mux(packet, output, copy) for packet in packets]
    except (ValueError, FFmpegError):
        return False
    return any(are_intact) or not are_intact


def _mux(packet: Packet[Any], output: OutputContainer, copy: Stream) -> bool:
    """Write a packet; return False, without writing it, if it is damaged."""
    packet.stream = copy
    try:
        output.mux(packet)
    except InvalidDataError:
        return False
    return True


def clip_tags(source: InputContainer) -> dict[str, str]:
    """Return the tags of the clip as a whole."""
    # FFmpeg repeats an MP4's location with its language.
    return {
        key: value
        for key, value in source.metadata.items()
        if key.lower() not in _FILE_TAGS and not key.startswith("location-")
    }


def tag_flags(tags: Iterable[str]) -> str:
    """Return the flag with which MP4 holds tags as phones write them."""
    return "+use_metadata_tags" if any(key.startswith("com.") for key in tags) else ""


def muxer_options(suffix: str, tags: Iterable[str] = ()) -> dict[str, str]:
    """Return the muxer's options for an output with these tags."""
    if suffix not in MP4_SUFFIXES:
        return {}
    return {
        "movflags": "+faststart" + tag_flags(tags),  # the index first: plays before it is fully loaded
        "movie_timescale": "90000",  # keeps a start after zero to 11 us; the muxer's default is 1 ms
    }


def time_code(source: InputContainer, video: VideoStream, frame_rate: Fraction) -> str | None:
    """Return the time code of the first frame, or None if there is none that muxers accept."""
    tags = {key.lower(): value for key, value in (source.metadata | video.metadata).items()}
    match = re.fullmatch(r"\d\d:\d\d:\d\d([:;])\d\d", tags.get("timecode", ""))
    if match is None or (match[1] == ";" and round(frame_rate) % 30):  # ";" drops numbers at 29.97 fps
        return None
    return match[0]


class SourceCopy:
    """Copy of a source's sound, subtitles, attached files, chapters and tags to an output."""

    def __init__(self, like: VideoInfo, output: OutputContainer, suffix: str, video: VideoStream) -> None:
        self.delay = Fraction(0)  # seconds added to every time
        self._path, self._output = like.path, output
        self._num_damaged = 0  # packets
        self._input = open_container(like.path)
        chosen = choose_video(self._input, like.path)
        tags = clip_tags(self._input)
        output.metadata.update(tags)
        output.options.update(muxer_options(suffix, tags))
        _describe_as(chosen, video)
        if code := time_code(self._input, chosen, like.frame_rate):
            video.metadata["timecode"] = code
        self._copies: dict[int, Stream] = {}
        for index in sorted(held_streams(like, suffix)):
            stream = self._input.streams[index]
            copy = self._copies[index] = output.add_stream_from_template(stream)
            _describe_as(stream, copy)
        output.set_chapters(self._input.chapters())
        self._packets = self._read(like)
        self._next = next(self._packets, None)

    def copy(self, *, until: Fraction | None) -> None:
        """Copy the packets that start up to `until` seconds, or all."""
        while (packet := self._next) is not None:
            assert packet.dts is not None
            if until is not None and packet.dts * packet.time_base + self.delay > until:
                return
            ticks = round(self.delay / packet.time_base)
            packet.dts += ticks
            packet.pts = None if packet.pts is None else packet.pts + ticks
            self._num_damaged += not _mux(packet, self._output, self._copies[packet.stream.index])
            self._next = next(self._packets, None)

    def close(self) -> None:
        """Close the source, and warn of damaged sound."""
        self._packets.close()
        self._input.close()
        if self._num_damaged:
            warnings.warn(
                f"{self._path}: its audio has gaps (damaged packets: {self._num_damaged})", stacklevel=2
            )

    def _read(self, info: VideoInfo) -> Generator[Packet[Any], None, None]:
        try:
            yield from _read_packets(info, self._input, self._copies)
        except TruncatedError as error:
            warnings.warn(f"{info.path}: its audio ends early ({error})", stacklevel=2)


def _describe_as(stream: Stream, copy: Stream) -> None:
    """Give a copy the stream's language, titles and flags."""
    tags = {
        "language": stream.language,
        "title": title(stream),
        "handler_name": stream.metadata.get("handler_name"),
    }
    copy.metadata.update({key: value for key, value in tags.items() if value})
    copy.disposition = stream.disposition

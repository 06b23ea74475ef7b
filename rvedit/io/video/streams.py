"""Open a container, choose the stream of the pictures, and describe all streams."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import av
from av.audio.stream import AudioStream
from av.codec.codec import UnknownCodecError
from av.codec.context import CodecContext
from av.container import Container, Flags, InputContainer
from av.error import FFmpegError
from av.format import Flags as FormatFlags
from av.packet import Packet
from av.stream import DataStream, Disposition, Stream
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from rvedit.io.errors import UserError

_THUMBNAIL = Disposition.attached_pic | Disposition.timed_thumbnails
_STILL_BRANDS = {"avif", "mif1", "heic", "heix"}
_SEQUENCE_BRANDS = {"avis", "msf1", "hevc", "hevx"}
# FFmpeg's own decoders of these ignore transparency.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


def open_container(path: Path) -> InputContainer:
    """Open a video file. Raises UserError if it is none."""
    try:
        # Without "file:" FFmpeg takes a name with a colon, or "-", for a protocol.
        container = av.open(f"file:{path}", metadata_errors="replace")
        # FFmpeg's guesses are wrong where frames are reordered.
        container.flags &= ~cast(int, Flags.gen_pts.value)
    except FFmpegError as error:
        raise UserError(
            f"{path}: not a video that can be read ({error.strerror}); "
            "it is damaged, ends before its index, or has another format"
        ) from error
    if container.format.name == "tty":  # FFmpeg renders text files as a terminal's screen
        container.close()
        raise UserError(f"{path}: a text file, not a video; give a video, an image or a folder of images")
    return container


def choose_video(container: InputContainer, path: Path) -> VideoStream:
    """Return the stream that players show: a default one, else the largest. Raises UserError."""
    streams = [stream for stream in container.streams.video if not is_thumbnail(stream)]
    if not streams:
        raise UserError(f"{path}: has no video stream; give a file with video, not only audio")
    decodable = [stream for stream in streams if stream.codec_context is not None]
    if not decodable:
        raise UserError(f"{path}: no decoder for its video; convert it to H.264 first")
    chosen = max(decodable, key=_rank)
    tiles = [stream for stream in streams if stream.disposition & Disposition.dependent]
    if chosen in tiles or (tiles and is_still(container)):
        raise UserError(f"{path}: a picture in {len(tiles)} tiles; convert it to .png or .jpg first")
    return chosen


def _rank(stream: VideoStream) -> tuple[bool, bool, bool, int]:
    is_whole_video = not stream.disposition & (Disposition.still_image | Disposition.dependent)
    has_times = stream.duration is not None  # the still beside an AVIF sequence has none
    return (
        is_whole_video,
        has_times,
        bool(stream.disposition & Disposition.default),
        stream.width * stream.height,
    )


def is_thumbnail(stream: VideoStream) -> bool:
    """Return whether a stream is a cover image or thumbnails of another one."""
    return bool(stream.disposition & _THUMBNAIL)


def is_still(container: InputContainer) -> bool:
    """Return whether a file holds a still picture: HEIF, AVIF, or an image without a container."""
    name = container.format.name
    return name.endswith("_pipe") or name == "image2" or _is_heif_still(container)


def is_avif_still(container: InputContainer) -> bool:
    """Return whether a file is a still AVIF picture."""
    return "avif" in _brands(container) and _is_heif_still(container)


def _is_heif_still(container: InputContainer) -> bool:
    brands = _brands(container)
    return bool(brands & _STILL_BRANDS) and not brands & _SEQUENCE_BRANDS


def _brands(container: InputContainer) -> set[str]:
    """Return the brands of a file of the MP4 family, four letters each."""
    tags = container.metadata
    text = tags.get("major_brand", "").ljust(4) + tags.get("compatible_brands", "")
    return {text[start : start + 4] for start in range(0, len(text), 4)}


def is_broadcast(container: Container) -> bool:
    """Return whether a format is one of broadcasts (MPEG-TS, MPEG-PS, Ogg), whose clock may jump."""
    return bool(container.format.flags & cast(int, FormatFlags.ts_discont.value))


def is_cut_off(packet: Packet[Any]) -> bool:
    """Return whether a packet's data end early; broadcast formats also mark intact packets beside a loss."""
    return packet.is_corrupt and not is_broadcast(packet.stream.container)


def picture_decoder(video: VideoStream) -> VideoCodecContext:
    """Return the decoder of a stream's pictures, with their transparency."""
    name = _ALPHA_DECODERS.get(codec_name(video))
    if name is None or video.metadata.get("alpha_mode") != "1":
        return video.codec_context
    try:
        return cast(VideoCodecContext, CodecContext.create(name, "r"))
    except UnknownCodecError:  # builds of FFmpeg may lack it
        return video.codec_context


def describe(streams: Iterable[Stream], chosen: VideoStream) -> tuple[str, ...]:
    """Return one line on each stream, such as "audio 1: aac 48000 Hz mono, eng"."""
    return tuple(
        f"{stream.type} {stream.index}: " + ", ".join(_facts(stream) + ["chosen"] * (stream is chosen))
        for stream in streams
    )


def _facts(stream: Stream) -> list[str]:
    text = codec_name(stream)
    if isinstance(stream, VideoStream) and stream.codec_context is not None:
        text += f" {stream.width}x{stream.height}"
    if isinstance(stream, AudioStream) and stream.codec_context is not None:
        text += f" {stream.rate} Hz {stream.layout.name}"
    flags = [flag.name.replace("_", " ") for flag in Disposition if stream.disposition & flag and flag.name]
    language = stream.language if stream.language != "und" else None
    return [text, *filter(None, (language, title(stream))), *flags]


def codec_name(stream: Stream) -> str:
    """Return the codec's name, or "unknown"."""
    context: CodecContext | None = stream.codec_context
    if context is not None:
        return context.codec.canonical_name
    return (isinstance(stream, DataStream) and stream.name) or "unknown"


def title(stream: Stream) -> str | None:
    """Return a stream's title, which the MP4 family calls its name."""
    return stream.metadata.get("title") or stream.metadata.get("name")

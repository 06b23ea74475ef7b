"""What an output will not hold of its source."""

from __future__ import annotations

from collections.abc import Collection
from io import BytesIO
from typing import Any

import av
from av.container import InputContainer
from av.stream import Discard, Disposition, Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from rvedit.io.video.clip import OVER_BLACK, VideoInfo
from rvedit.io.video.copies import FORMATS, MP4_SUFFIXES, clip_tags, held_streams, tag_flags, time_code
from rvedit.io.video.streams import choose_video, codec_name, is_thumbnail, open_container

_HELD_FLAGS = {
    ".mp4": {"default", "dub", "comment", "forced", "hearing_impaired", "visual_impaired"},
    ".mov": {"default"},
    ".mkv": {"default", "dub", "original", "comment", "forced", "hearing_impaired", "visual_impaired"},
    ".webm": {"default", "forced"},
}


def losses(info: VideoInfo, suffix: str) -> list[str]:
    """Return what an output with this suffix will not hold of a clip, in one line each."""
    lines = []
    if info.streams:
        with open_container(info.path) as source:
            held = held_streams(info, suffix)
            lost = [stream for stream in source.streams.audio if stream.index not in held]
            lines += [_lost_sound(info, stream, suffix) for stream in lost]
            if rest := _lost_parts(info, source, held, suffix):
                lines.append(f"left out of {suffix}: {', '.join(rest)}")
    if info.has_alpha:
        lines.append(OVER_BLACK)
    return lines


def holds_sound(info: VideoInfo, suffix: str) -> bool:
    """Return whether an output with this suffix holds all sound of a clip."""
    if not info.has_audio:
        return True
    held = held_streams(info, suffix)
    with open_container(info.path) as source:
        return all(stream.index in held for stream in source.streams.audio)


def _lost_sound(info: VideoInfo, stream: Stream, suffix: str) -> str:
    remedy = "; write .mkv to keep it" if stream.index in held_streams(info, ".mkv") else ""
    return f"its {codec_name(stream)} audio is left out of {suffix}{remedy}"


def _lost_parts(info: VideoInfo, source: InputContainer, held: Collection[int], suffix: str) -> list[str]:
    parts = []
    video = choose_video(source, info.path)
    for stream in source.streams:
        if stream is video or stream.type == "audio" or stream.index in held:
            continue
        if stream.type == "subtitle":
            parts.append(f"subtitles ({codec_name(stream)})")
        elif stream.type == "attachment":
            parts.append(f"attached file {stream.metadata.get('filename', '')}".strip())
        elif isinstance(stream, VideoStream):
            parts.append("cover image" if is_thumbnail(stream) else f"another video ({codec_name(stream)})")
        # The other data are chapters and time codes, which are written anew.
        elif stream.discard != Discard.all and "timecode" not in stream.metadata:
            parts.append(f"data ({codec_name(stream)})")
    flags = {name for stream in source.streams if stream.index in held for name in _flags(stream)}
    if lost_flags := flags - _HELD_FLAGS.get(suffix, set()):
        parts.append(f"flags of streams ({', '.join(sorted(lost_flags))})")
    has_tags = suffix in FORMATS and suffix != ".gif"
    if source.chapters() and not has_tags:
        parts.append("chapters")
    has_time_code = any("timecode" in part.metadata for part in (source, *source.streams))
    if has_time_code and not (has_tags and time_code(source, video, info.frame_rate)):
        parts.append("time code")
    tags = clip_tags(source)
    held_tags = _held_tags(tags, suffix) if tags and has_tags else set()
    if lost_tags := [key for key in tags if key.lower() not in held_tags]:
        parts.append(f"tags ({', '.join(lost_tags)})")
    return parts


def _flags(stream: Stream) -> list[str]:
    return [flag.name for flag in Disposition if stream.disposition & flag and flag.name]


def _held_tags(tags: dict[str, str], suffix: str) -> set[str]:
    """Return the tags, in lower case, that can be read again from a file with this suffix."""
    file = BytesIO()
    flags = tag_flags(tags)
    options = {"movflags": flags} if flags and suffix in MP4_SUFFIXES else {}
    with av.open(file, "w", format=FORMATS[suffix], options=options) as output:
        output.metadata.update(tags)
        video: Any = output.add_stream("libvpx-vp9" if suffix == ".webm" else "mpeg4", rate=25)
        video.width = video.height = 16
        for frame in (VideoFrame(16, 16), None):
            output.mux(video.encode(frame))
    file.seek(0)
    with av.open(file, metadata_errors="replace") as copy:
        return {key.lower() for key in copy.metadata}

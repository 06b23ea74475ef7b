"""Evenly spaced frames of a clip as small JPEG images for a chat model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from rvedit.io.chat.journal import Journal
from rvedit.io.chat.messages import Jpeg
from rvedit.io.errors import UserError
from rvedit.io.video import Frame, VideoReader, evenly_spaced

_VERSION = 1  # increase it when the same clip gives other bytes


@dataclass(frozen=True)
class FrameSettings:
    """Number of frames, maximum length of their long side in pixels, and JPEG quality (1-100)."""

    count: int = 8
    long_side: int = 512
    quality: int = 85


class FrameReader:
    """Reads clips as JPEG frames; the journal stores their digests, so that a clip is decoded only once."""

    def __init__(self, settings: FrameSettings, journal: Journal) -> None:
        self.settings = settings
        self._journal = journal

    def cached(self, clip: Path) -> list[Jpeg] | None:
        """Return the frames as digests without data, or None if the clip is new or has changed."""
        key = self._key(clip)
        digests = None if key is None else self._journal.get(key)
        return None if digests is None else [Jpeg(digest) for digest in digests]

    def store(self, clip: Path, frames: list[Jpeg]) -> None:
        """Store the frames' digests for later runs."""
        if key := self._key(clip):
            self._journal.put(key, [frame.sha256 for frame in frames])

    def read(self, clip: Path) -> list[Jpeg]:
        """Decode the frames, including the first and the last; a shorter clip gives all of its frames.

        Raises UserError if the clip cannot be read to its end.
        """
        with VideoReader(clip) as reader:
            return take_frames(reader, self.settings)

    def _key(self, clip: Path) -> str | None:
        s = self.settings
        return file_key(f"frames:{s.count}x{s.long_side}q{s.quality}v{_VERSION}", clip)


def take_frames(reader: VideoReader, settings: FrameSettings) -> list[Jpeg]:
    """Return the frames of an open clip, as `FrameReader.read` does."""
    indices = set(evenly_spaced(reader.info.num_frames, settings.count))
    frames = [Jpeg.of(_encode(timed.frame, settings)) for timed in reader.pick(indices)]
    if not frames:
        raise UserError(f"{reader.info.path}: no frame can be decoded: get another copy")
    return frames


def file_key(kind: str, path: Path) -> str | None:
    """Return a journal key of a file's size, time and path; None if it is no file, such as a frame folder."""
    if not os.path.isfile(path):
        return None
    stat = path.stat()
    return f"{kind}:{stat.st_size}:{stat.st_mtime_ns}:{os.path.abspath(path)}"


def gray_image() -> Jpeg:
    """Return a small gray image, to test whether a model accepts images."""
    return Jpeg.of(_encode(np.full((64, 64, 3), 128, np.uint8), FrameSettings()))


def expected_tokens(settings: FrameSettings, num_frames: int, width: int, height: int) -> int:
    """Return roughly the tokens of a clip's frames in Qwen3-VL: one per 32 x 32 pixels.

    Values of 0 are unknown: 16:9 is assumed for the size, and enough frames.
    """
    if not width or not height:
        width, height = 16, 9
        scale = settings.long_side / width
    else:
        scale = min(1.0, settings.long_side / max(width, height))
    tokens = max(1, round(width * scale / 32)) * max(1, round(height * scale / 32))
    return tokens * min(settings.count, num_frames or settings.count)


def _encode(frame: Frame, settings: FrameSettings) -> bytes:
    image = Image.fromarray(frame)
    image.thumbnail((settings.long_side, settings.long_side), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=settings.quality)
    return buffer.getvalue()

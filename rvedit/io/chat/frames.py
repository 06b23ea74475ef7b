"""The frames that a model is shown: evenly spread, small, as JPEG."""

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
from rvedit.io.video import Frame, VideoReader

_VERSION = 1  # raise it when other bytes come out of the same clip


@dataclass(frozen=True)
class FrameSettings:
    """How many frames of a clip, and how large: the long side in pixels at most, JPEG's quality of 100."""

    count: int = 8
    long_side: int = 512
    quality: int = 85


class Frames:
    """Clips as JPEG frames; a clip that was shown before is known without being decoded again."""

    def __init__(self, settings: FrameSettings, journal: Journal) -> None:
        self.settings = settings
        self._journal = journal

    def known(self, clip: Path) -> list[Jpeg] | None:
        """The clip's frames by their digests alone, where it was read before and has not changed since."""
        key = self._key(clip)
        digests = None if key is None else self._journal.get(key)
        return None if digests is None else [Jpeg(digest) for digest in digests]

    def remember(self, clip: Path, frames: list[Jpeg]) -> None:
        """Spare the next run the decoding."""
        if key := self._key(clip):
            self._journal.put(key, [frame.sha256 for frame in frames])

    def read(self, clip: Path) -> list[Jpeg]:
        """Decode; first and last frame are among them, and a shorter clip gives all it has.

        Raises UserError for a clip that cannot be read to its end.
        """
        with VideoReader(clip) as reader:
            return take_frames(reader, self.settings)

    def _key(self, clip: Path) -> str | None:
        """Names a file's content without reading it; a folder of pictures has no such name."""
        s = self.settings
        return file_key(f"frames:{s.count}x{s.long_side}q{s.quality}v{_VERSION}", clip)


def take_frames(reader: VideoReader, settings: FrameSettings) -> list[Jpeg]:
    """See `Frames.read`; of a clip that is open."""
    wanted = set(evenly_spaced(reader.info.num_frames, settings.count))
    pictures = [_encoded(timed.frame, settings) for timed in reader.pick(wanted)]
    if not pictures:
        raise UserError(f"{reader.info.path}: no frame of it decodes; get another copy")
    return [Jpeg.of(picture) for picture in pictures]


def file_key(kind: str, path: Path) -> str | None:
    """Names what is known of a file, by its size, time and place; none where there is no file."""
    if not path.is_file():
        return None
    stat = path.stat()
    return f"{kind}:{stat.st_size}:{stat.st_mtime_ns}:{os.path.abspath(path)}"


def evenly_spaced(num_frames: int, count: int) -> list[int]:
    """Indices of `count` frames, evenly from the first to the last; all where there are fewer."""
    if num_frames <= count:
        return list(range(num_frames))
    if count == 1:
        return [(num_frames - 1) // 2]
    return [round(index * (num_frames - 1) / (count - 1)) for index in range(count)]


def grey_picture() -> Jpeg:
    """The smallest thing to be seen, to find out whether a model takes pictures."""
    return Jpeg.of(_encoded(np.full((64, 64, 3), 128, np.uint8), FrameSettings()))


def expected_tokens(settings: FrameSettings, num_frames: int, width: int, height: int) -> int:
    """What a clip's frames cost Qwen3-VL, roughly: one token for 32 x 32 pixels.

    A size of 0 is one not known: 16:9 is taken, and frames enough.
    """
    if not width or not height:
        width, height = 16, 9
        scale = settings.long_side / width
    else:
        scale = min(1.0, settings.long_side / max(width, height))
    tokens = max(1, round(width * scale / 32)) * max(1, round(height * scale / 32))
    return tokens * min(settings.count, num_frames or settings.count)


def _encoded(picture: Frame, settings: FrameSettings) -> bytes:
    image = Image.fromarray(picture)
    image.thumbnail((settings.long_side, settings.long_side), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=settings.quality)
    return buffer.getvalue()

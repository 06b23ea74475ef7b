"""The pictures that judges see, kept as files by their content."""

from __future__ import annotations

from pathlib import Path

from rvedit.chat import Frames, Journal, Jpeg, file_key
from rvedit.judge.request import FRAMES
from rvedit.video import probe, temporary_sibling


class FrameStore:
    """Five pictures of each clip, in `folder/<sha256>.jpg`; a clip that has not changed is decoded once."""

    def __init__(self, folder: Path, journal: Journal) -> None:
        self.folder = folder
        self._journal = journal
        self._frames = Frames(FRAMES, journal)

    def known(self, clip: Path) -> list[Jpeg] | None:
        """The clip's pictures by their digests alone, where it was read before."""
        return self._frames.known(clip)

    def read(self, clip: Path) -> list[Jpeg]:
        """The clip's pictures, from the store or decoded. Raises UserError for a clip that is damaged."""
        known = self.known(clip)
        if known is not None:
            paths = [self.path(frame.sha256) for frame in known]
            if all(path.is_file() for path in paths):
                return [Jpeg(f.sha256, path.read_bytes()) for f, path in zip(known, paths, strict=True)]
        frames = self._frames.read(clip)
        for frame in frames:
            path = self.path(frame.sha256)
            if not path.is_file():
                self.folder.mkdir(parents=True, exist_ok=True)
                part = temporary_sibling(path)
                part.write_bytes(frame.data)
                part.replace(path)
        self._frames.remember(clip, frames)
        return frames

    def length(self, clip: Path) -> int:
        """Frames of a clip, which must be readable."""
        key = file_key("length", clip)
        count = self._journal.get(key) if key else None
        if count is None:
            count = probe(clip).num_frames
            if key:
                self._journal.put(key, count)
        return int(count)

    def digests(self, clip: Path) -> tuple[str, ...]:
        """Of the clip's pictures, for the record and the report; none where it was not read."""
        return tuple(frame.sha256 for frame in self.known(clip) or ())

    def path(self, digest: str) -> Path:
        """Where a picture lies."""
        return self.folder / f"{digest}.jpg"

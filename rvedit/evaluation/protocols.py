"""The two protocols of judging by a multimodal model; nothing averages across them.

`paper` (Appendix D.3): 1 to 100, five frames of the source and five of the edit, our own copy of its rubrics.
`openve`: OpenVE-Bench's own, 1 to 5, both clips whole, categories by the benchmark's words, and rubrics that
are not ours to hand on: the user names a folder with them.
"""

from __future__ import annotations

import mimetypes
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from rvedit.evaluation.frames import FrameStore
from rvedit.evaluation.request import CLOSING, EDITED_HEADER, FRAMES, SOURCE_HEADER
from rvedit.evaluation.rubrics import EDIT_PROMPT, rubric
from rvedit.io.bench import BenchItem
from rvedit.io.chat import Journal, Jpeg, Video, file_key
from rvedit.io.errors import UserError
from rvedit.io.records import Category

Media = Sequence[Jpeg | Video]


class JudgeProtocol(Protocol):
    """What a judge is shown and told."""

    name: str
    low: int
    """The scale's ends."""
    high: int
    frames: FrameStore
    """The clips' pictures, for the record and the report."""
    pictures: int
    """That are sent of a pair; 0 where whole clips are."""

    @property
    def categories(self) -> tuple[str, ...]:
        """Those that have a rubric."""

    def category_of(self, item: BenchItem) -> str | None:
        """The category by which an item is judged; none where there is no rubric."""

    def rubric(self, category: str) -> str:
        """The system text, with `{edit_prompt}` where the instruction goes."""

    def parts(self, source: Media, edited: Media) -> tuple[str | Jpeg | Video, ...]:
        """The turn's texts and media in their order."""

    def known(self, clip: Path) -> Media | None:
        """A clip's media by their digests, where it was read before and has not changed."""

    def read(self, clip: Path) -> Media:
        """A clip's media. Raises UserError for a clip that is damaged."""


class PaperProtocol:
    """Appendix D.3."""

    name, low, high = "paper", 1, 100
    pictures = 2 * FRAMES.count
    categories = tuple(category.value for category in Category)

    def __init__(self, frames: FrameStore) -> None:
        self.frames = frames

    def category_of(self, item: BenchItem) -> str | None:
        """See `JudgeProtocol`."""
        return item.category.value if item.category else None

    def rubric(self, category: str) -> str:
        """See `JudgeProtocol`."""
        return rubric(Category(category))

    def parts(self, source: Media, edited: Media) -> tuple[str | Jpeg | Video, ...]:
        """See `JudgeProtocol`."""
        return (SOURCE_HEADER, *source, EDITED_HEADER, *edited, CLOSING)

    def known(self, clip: Path) -> Media | None:
        """See `JudgeProtocol`."""
        return self.frames.known(clip)

    def read(self, clip: Path) -> Media:
        """See `JudgeProtocol`."""
        return self.frames.read(clip)


class OpenVEProtocol:
    """OpenVE-Bench's own.

    Args:
        rubrics: a folder of `<edited_type>.txt`, each with `{edit_prompt}` where the instruction goes.
        journal: remembers the clips' digests.
        frames: for the report's pictures.
    """

    name, low, high = "openve", 1, 5
    pictures = 0

    def __init__(self, rubrics: Path, journal: Journal, frames: FrameStore) -> None:
        self._journal, self.frames = journal, frames
        if not rubrics.is_dir():
            raise UserError(f"--rubrics {rubrics}: no such folder")
        self._texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(rubrics.glob("*.txt"))}
        if not self._texts:
            raise UserError(f"--rubrics {rubrics}: holds no rubric such as local_change.txt")
        wrong = [name for name, text in self._texts.items() if EDIT_PROMPT not in text]
        if wrong:
            raise UserError(f"{rubrics / wrong[0]}.txt: has no {EDIT_PROMPT} where the instruction goes")

    @property
    def categories(self) -> tuple[str, ...]:
        """See `JudgeProtocol`."""
        return tuple(self._texts)

    def category_of(self, item: BenchItem) -> str | None:
        """See `JudgeProtocol`."""
        return item.word if item.word in self._texts else None

    def rubric(self, category: str) -> str:
        """See `JudgeProtocol`."""
        return self._texts[category]

    def parts(self, source: Media, edited: Media) -> tuple[str | Jpeg | Video, ...]:
        """See `JudgeProtocol`."""
        return (*source, *edited)

    def known(self, clip: Path) -> Media | None:
        """See `JudgeProtocol`."""
        key = file_key("video", clip)
        digest = self._journal.get(key) if key else None
        return [Video(digest, mime=_mime(clip))] if digest else None

    def read(self, clip: Path) -> Media:
        """See `JudgeProtocol`; the clip is decoded too, to find out whether it is whole."""
        self.frames.read(clip)
        video = Video.of(clip.read_bytes(), _mime(clip))
        if key := file_key("video", clip):
            self._journal.put(key, video.sha256)
        return [video]


def _mime(clip: Path) -> str:
    return mimetypes.guess_type(clip.name)[0] or "video/mp4"

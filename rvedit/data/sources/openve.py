"""OpenVE-3M: one CSV per category (`video;prompt;original_video`) over one pool of clips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from rvedit.data.sources.base import BadRow, Reading, Row
from rvedit.data.sources.tables import Fields, csv_rows
from rvedit.records import Category

_TARGET, _INSTRUCTION, _SOURCE = "video", "prompt", "original_video"  # `video` is the *edited* clip


class OpenVE:
    """Lewandofski/OpenVE-3M; the category is in the name of the CSV file."""

    name = "openve"
    licence = "CC BY-NC 4.0"
    expected = "CSV files with the columns video;prompt;original_video, one per category"
    extracted_in = "."
    words: ClassVar[Mapping[str, Category | None]] = {
        "global_style": Category.STYLE,
        "local_change": Category.CHANGE,
        "local_remove": Category.REMOVE,
        "local_add": Category.ADD,
        "background_change": None,
        "subtitles": None,
        "camera": None,
        "creative": None,
    }
    identity = ("source", "target", "instruction")  # one target occurs with several sources and prompts

    def metadata(self, folder: Path) -> list[Path]:
        """CSV files in the folder and one below it."""
        return sorted([*folder.glob("*.csv"), *folder.glob("*/*.csv")])

    def read(self, folder: Path, file: Path) -> Reading | None:
        """Rows of one category."""
        rows = csv_rows(file, (_TARGET, _INSTRUCTION, _SOURCE))
        if rows is None:
            return None
        below = sorted(path for path in folder.iterdir() if path.is_dir())
        return Reading(self._rows(file, rows), (folder, file.parent, *below))

    def _rows(self, file: Path, rows: Iterator[tuple[int, Fields] | BadRow]) -> Iterator[Row | BadRow]:
        stem = file.stem.lower().replace("-", "_")
        word = next((word for word in self.words if word.removesuffix("s") in stem), stem)
        for row in rows:
            if isinstance(row, BadRow):
                yield row
                continue
            number, fields = row
            yield Row(
                file,
                number,
                source=fields[_SOURCE],
                target=fields[_TARGET],
                instruction=fields[_INSTRUCTION],
                word=word,
                category=self.words.get(word),
            )


OPENVE = OpenVE()

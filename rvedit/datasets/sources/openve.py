"""OpenVE-3M: one CSV per category (`video;prompt;original_video`) over one pool of clips."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from rvedit.datasets.sources.base import Reading
from rvedit.datasets.sources.tables import as_rows, csv_rows
from rvedit.io.bench import OPENVE_CATEGORIES
from rvedit.io.records import Category

_TARGET, _INSTRUCTION, _SOURCE = "video", "prompt", "original_video"  # `video` is the *edited* clip


class OpenVE:
    """Lewandofski/OpenVE-3M; the category is in the name of the CSV file."""

    name = "openve"
    licence = "CC BY-NC 4.0"
    expected = "CSV files with the columns video;prompt;original_video, one per category"
    extracted_in = "."
    words: ClassVar[Mapping[str, Category | None]] = OPENVE_CATEGORIES
    identity = ("source", "target", "instruction")  # one target occurs with several sources and prompts

    def metadata(self, folder: Path) -> list[Path]:
        """CSV files in the folder and one below it."""
        return sorted([*folder.glob("*.csv"), *folder.glob("*/*.csv")])

    def read(self, folder: Path, file: Path) -> Reading | None:
        """Rows of one category."""
        rows = csv_rows(file, (_TARGET, _INSTRUCTION, _SOURCE))
        if rows is None:
            return None
        stem = file.stem.lower().replace("-", "_")
        word = next((word for word in self.words if word.removesuffix("s") in stem), stem)
        below = sorted(path for path in folder.iterdir() if path.is_dir())
        columns = (_SOURCE, _TARGET, _INSTRUCTION)
        read = as_rows(file, rows, columns, word, self.words.get(word))
        return Reading(read, (folder, file.parent, *below))


OPENVE = OpenVE()

"""Kiwi-Edit's training metadata: CSV files and parquet chunks that point to other sets' clips."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from rvedit.datasets.sources.base import BadRow, Reading, Row, category_of_instruction, folder_words
from rvedit.datasets.sources.ditto import DITTO
from rvedit.datasets.sources.openve import OPENVE
from rvedit.datasets.sources.reco import RECO
from rvedit.datasets.sources.tables import Fields, csv_rows, parquet_rows
from rvedit.io.records import Category

_COLUMNS = ("src_video", "tgt_video", "prompt")
_WORDS: dict[str, Category | None] = {**DITTO.words, **RECO.words, **OPENVE.words}


class Kiwi:
    """linyq/kiwi_edit_training_data; its clips are those of other sets, given as further folders.

    The word for an edit is that of the set that the edited clip is from, where the folders of its path
    or the metadata file's name have one (style, local_change, ...), else the metadata file's name (refvie
    for the chunks of refvie_477k); then the first verb of the instruction tells which of ours it is.
    Reference images are not read.
    """

    name = "kiwi"
    licence = "of the clips' own sets: CC BY-NC 4.0 or CC BY-NC-SA 4.0"
    expected = "CSV files with the columns src_video,tgt_video,prompt, or refvie_477k/chunk_*.parquet"
    extracted_in = "."
    words: ClassVar[Mapping[str, Category | None]] = {**_WORDS, "refvie": None}
    identity = ("source", "target", "instruction")

    def metadata(self, folder: Path) -> list[Path]:
        """CSV and parquet files in the folder and one below it."""
        patterns = ("*.csv", "*/*.csv", "refvie*/*.parquet", "*.parquet")
        return sorted(file for pattern in patterns for file in folder.glob(pattern))

    def read(self, folder: Path, file: Path) -> Reading | None:
        """Rows of one CSV file or one chunk."""
        rows = csv_rows(file, _COLUMNS) if file.suffix == ".csv" else parquet_rows(file, _COLUMNS)
        if rows is None:
            return None
        below = sorted(path for path in folder.iterdir() if path.is_dir())
        return Reading(self._rows(file, rows), (folder, file.parent, *below))

    def _rows(self, file: Path, rows: Iterator[tuple[int, Fields] | BadRow]) -> Iterator[Row | BadRow]:
        name = "refvie" if file.suffix == ".parquet" else file.stem.lower().replace("-", "_")
        # The longest word first: local_add before add.
        in_name = next((w for w in sorted(_WORDS, key=len, reverse=True) if _is_part(w, name)), None)
        for row in rows:
            if isinstance(row, BadRow):
                yield row
                continue
            number, fields = row
            source, target, instruction = (fields[column] for column in _COLUMNS)
            known = [word for word in folder_words(target) if word in _WORDS]
            word = known[-1] if known else in_name or name
            category = _WORDS.get(word)
            if word not in _WORDS or word == "local":
                category = category_of_instruction(instruction)
            yield Row(file, number, source, target, instruction, word, category)


def _is_part(word: str, name: str) -> bool:
    return re.search(rf"(^|_){word}(_|\d|$)", name) is not None


KIWI = Kiwi()

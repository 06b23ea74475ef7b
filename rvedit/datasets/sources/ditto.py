"""Ditto-1M: `training_metadata/*.json`, or `csvs_for_DiffSynth/*.csv`, over clips in `videos/`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from rvedit.datasets.sources.base import BadRow, Reading, Row, category_of_instruction, folder_words
from rvedit.datasets.sources.tables import Fields, csv_rows, json_rows
from rvedit.io.records import Category

_JSON = ("source_path", "edited_path", "instruction")
_CSV = ("vace_video", "video", "prompt")  # `video` is the *edited* clip
_FILES_WORDS = ("local_replace", "sim2real")  # that the clips' folders do not tell


class Ditto:
    """QingyanBai/Ditto-1M.

    The word for an edit is the folder of the edited clip without its number (global_style1: global_style),
    or the metadata file's name for local_replace and sim2real. `local` edits of any kind lie in one folder:
    the first verb of the instruction tells which of ours they are.
    """

    name = "ditto"
    licence = "CC BY-NC-SA 4.0"
    expected = "training_metadata/*.json or csvs_for_DiffSynth/*.csv"
    extracted_in = ".."
    words: ClassVar[Mapping[str, Category | None]] = {
        "global_style": Category.STYLE,
        "local_replace": Category.CHANGE,
        "local": None,
        "global_freeform": None,
        "sim2real": None,
    }
    identity = ("source", "target")  # the two layouts may word an instruction differently

    def metadata(self, folder: Path) -> list[Path]:
        """Each set's JSON file, or its CSV file where there is none."""
        files = {file.stem: file for file in sorted(folder.glob("csvs_for_DiffSynth/*.csv"))}
        files |= {file.stem: file for file in sorted(folder.glob("training_metadata/*.json"))}
        # local_replace is a part of local: read first, so that its rows keep the more telling word.
        return sorted(files.values(), key=lambda file: (file.stem not in _FILES_WORDS, file.stem))

    def read(self, folder: Path, file: Path) -> Reading | None:
        """Rows of one metadata file, of either layout."""
        is_json = file.suffix == ".json"
        columns = _JSON if is_json else _CSV
        rows = json_rows(file, columns) if is_json else csv_rows(file, columns)
        if rows is None:
            return None
        videos = folder / "videos"
        # Archives that were extracted where they lie make videos/local/local/....
        below = sorted(path for path in videos.glob("*") if path.is_dir())
        return Reading(self._rows(file, columns, rows), (videos, folder, *below))

    def _rows(
        self, file: Path, columns: tuple[str, str, str], rows: Iterator[tuple[int, Fields] | BadRow]
    ) -> Iterator[Row | BadRow]:
        stem = re.sub(r"\d+$", "", file.stem)
        for row in rows:
            if isinstance(row, BadRow):
                yield row
                continue
            number, fields = row
            source, target, instruction = (fields[name] for name in columns)
            folders = folder_words(target)
            word = stem if stem in _FILES_WORDS or not folders else folders[-1]
            category = category_of_instruction(instruction) if word == "local" else self.words.get(word)
            yield Row(file, number, source, target, instruction, word, category)


DITTO = Ditto()

"""Kiwi-Edit's training metadata: CSV files and parquet chunks over the clips of other datasets."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import ClassVar

from rvedit.datasets.sources.base import Categories, Columns, Source, category_of_instruction, folder_names
from rvedit.datasets.sources.ditto import Ditto
from rvedit.datasets.sources.openve import OpenVE
from rvedit.datasets.sources.reco import ReCo
from rvedit.io.records import Category

_COLUMNS = ("src_video", "tgt_video", "prompt")
_CATEGORIES: Categories = {**Ditto.categories, **ReCo.categories, **OpenVE.categories}


class Kiwi(Source):
    """linyq/kiwi_edit_training_data; the other datasets with its clips are given as further folders.

    The dataset's category is the other dataset's, if the edited clip's folders or the metadata file's name
    have one (style, local_change, ...), else the metadata file's name (refvie for the chunks of refvie_477k);
    then the instruction's first verb gives the paper's category. Reference images are files
    of CSVs, and bytes in parquet files.
    """

    name = "kiwi"
    licence = "of the clips' own sets: CC BY-NC 4.0 or CC BY-NC-SA 4.0"
    reference_column = "ref_image"
    embedded_column = "ref_image_bytes"
    expected = "CSV files with the columns src_video,tgt_video,prompt, or refvie_477k/chunk_*.parquet"
    patterns = ("*.csv", "*/*.csv", "refvie*/*.parquet", "*.parquet")
    columns: ClassVar[Columns] = {".csv": _COLUMNS, ".parquet": _COLUMNS}
    categories: ClassVar[Categories] = {**_CATEGORIES, "refvie": None}

    def categorize(self, file: Path, target: str, instruction: str) -> tuple[str, Category | None]:
        """Return the category of the clip's folders or the file's name."""
        name = next((n for n in reversed(folder_names(target)) if n in _CATEGORIES), _file_category(file))
        if name in _CATEGORIES and name != "local":
            return name, _CATEGORIES[name]
        return name, category_of_instruction(instruction)


@cache
def _file_category(file: Path) -> str:
    stem = "refvie" if file.suffix.lower() == ".parquet" else file.stem.lower().replace("-", "_")
    longest_first = sorted(_CATEGORIES, key=len, reverse=True)  # local_add before add
    return next((c for c in longest_first if re.search(rf"(^|_){c}(_|\d|$)", stem)), stem)

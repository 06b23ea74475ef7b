"""Ditto-1M: `training_metadata/*.json` or `csvs_for_DiffSynth/*.csv`, with clips in `videos/`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

from rvedit.datasets.sources.base import (
    Categories,
    Columns,
    Source,
    category_of_instruction,
    folder_names,
    subfolders,
)
from rvedit.io.records import Category

_FILE_CATEGORIES = ("local_replace", "sim2real")  # not given by the clips' folders


class Ditto(Source):
    """QingyanBai/Ditto-1M.

    The dataset's category is the edited clip's folder without its number (global_style1: global_style), or
    the metadata file's name for local_replace and sim2real. One folder holds all `local` edits, so the first
    verb of the instruction gives the paper's category.
    """

    name = "ditto"
    licence = "CC BY-NC-SA 4.0"
    expected = "training_metadata/*.json or csvs_for_DiffSynth/*.csv"
    patterns = ("csvs_for_DiffSynth/*.csv", "training_metadata/*.json")
    columns: ClassVar[Columns] = {
        ".json": ("source_path", "edited_path", "instruction"),
        ".csv": ("vace_video", "video", "prompt"),  # `video` is the *edited* clip
    }
    categories: ClassVar[Categories] = {
        "global_style": Category.STYLE,
        "local_replace": Category.CHANGE,
        "local": None,
        "global_freeform": None,
        "sim2real": None,
    }
    extract_to = ".."
    id_fields = ("source", "target")  # the two layouts may word an instruction differently

    def metadata(self, folder: Path) -> list[Path]:
        """Return each subset's JSON file, or its CSV file without one."""
        files = {file.stem: file for file in super().metadata(folder)}  # JSON files come last
        # local_replace is a subset of local: read first, so that its rows keep the narrower category.
        return sorted(files.values(), key=lambda file: (file.stem not in _FILE_CATEGORIES, file.stem))

    def clip_folders(self, folder: Path, file: Path) -> list[Path]:
        """Return `videos` first; archives extracted in their own folder give videos/local/local/..."""
        videos = folder / "videos"
        return [videos, folder, *subfolders(videos)]

    def categorize(self, file: Path, target: str, instruction: str) -> tuple[str, Category | None]:
        """Return the category of the clip's folder or the file's name."""
        stem = re.sub(r"\d+$", "", file.stem)
        folders = folder_names(target)
        name = stem if stem in _FILE_CATEGORIES or not folders else folders[-1]
        return name, category_of_instruction(instruction) if name == "local" else self.categories.get(name)

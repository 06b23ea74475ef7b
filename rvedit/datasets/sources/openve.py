"""OpenVE-3M: one CSV per category (`video;prompt;original_video`), with shared clips."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from rvedit.datasets.sources.base import Categories, Columns, Source
from rvedit.io.bench import OPENVE_CATEGORIES
from rvedit.io.records import Category


class OpenVE(Source):
    """Lewandofski/OpenVE-3M; the CSV file's name contains the category."""

    name = "openve"
    licence = "CC BY-NC 4.0"
    expected = "CSV files with the columns video;prompt;original_video, one per category"
    patterns = ("*.csv", "*/*.csv")
    # `video` is the *edited* clip; one occurs with several sources and prompts.
    columns: ClassVar[Columns] = {".csv": ("original_video", "video", "prompt")}
    categories: ClassVar[Categories] = OPENVE_CATEGORIES

    def categorize(self, file: Path, target: str, instruction: str) -> tuple[str, Category | None]:
        """Return the category in the file's name."""
        stem = file.stem.lower().replace("-", "_")
        name = next((name for name in self.categories if name.removesuffix("s") in stem), stem)
        return name, self.categories.get(name)

"""ReCo-Data: `<task>/<task>_data_configs.json`, with clips in `<task>/{src,tar}_videos/`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from rvedit.datasets.sources.base import Categories, Columns, Source
from rvedit.io.records import Category

_ENDING = "_data_configs"


class ReCo(Source):
    """HiDream-ai/ReCo-Data; the task is the category."""

    name = "reco"
    licence = "CC BY-NC-SA 4.0"
    expected = f"<task>/<task>{_ENDING}.json with src_video, tar_video and instruction_final_refine"
    patterns = (f"*{_ENDING}.json", f"*/*{_ENDING}.json")
    columns: ClassVar[Columns] = {".json": ("src_video", "tar_video", "instruction_final_refine")}
    categories: ClassVar[Categories] = {
        "replace": Category.CHANGE,
        "style": Category.STYLE,
        "remove": Category.REMOVE,
        "add": Category.ADD,
    }

    def clip_folders(self, folder: Path, file: Path) -> list[Path]:
        """Return the dataset's folder first, as ReCo's own loader does."""
        return [folder, file.parent, folder / file.stem.removesuffix(_ENDING)]

    def categorize(self, file: Path, target: str, instruction: str) -> tuple[str, Category | None]:
        """Return the task in the file's name."""
        task = file.stem.removesuffix(_ENDING)
        return task, self.categories.get(task)

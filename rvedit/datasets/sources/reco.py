"""ReCo-Data: `<task>/<task>_data_configs.json`, with clips in `<task>/{src,tar}_videos/`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from rvedit.datasets.sources.base import Reading
from rvedit.datasets.sources.tables import as_rows, json_rows
from rvedit.io.records import Category

_SOURCE, _TARGET, _INSTRUCTION = "src_video", "tar_video", "instruction_final_refine"  # tar: target
_SUFFIX = "_data_configs.json"


class ReCo:
    """HiDream-ai/ReCo-Data; the category is the task's name."""

    name = "reco"
    licence = "CC BY-NC-SA 4.0"
    expected = f"<task>/<task>{_SUFFIX} with src_video, tar_video and instruction_final_refine"
    extracted_in = "."
    words: ClassVar[Mapping[str, Category | None]] = {
        "replace": Category.CHANGE,
        "style": Category.STYLE,
        "remove": Category.REMOVE,
        "add": Category.ADD,
    }
    identity = ("source", "target", "instruction")

    def metadata(self, folder: Path) -> list[Path]:
        """The tasks' JSON files, in the folder or one below it."""
        return sorted([*folder.glob(f"*{_SUFFIX}"), *folder.glob(f"*/*{_SUFFIX}")])

    def read(self, folder: Path, file: Path) -> Reading | None:
        """Rows of one task."""
        rows = json_rows(file, (_SOURCE, _TARGET, _INSTRUCTION))
        if rows is None:
            return None
        task = file.name.removesuffix(_SUFFIX)
        # Their loader joins the paths to the data set's folder.
        read = as_rows(file, rows, (_SOURCE, _TARGET, _INSTRUCTION), task, self.words.get(task))
        return Reading(read, (folder, file.parent, folder / task))


RECO = ReCo()

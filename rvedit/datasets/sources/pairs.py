"""A user's own pairs: folders `source` and `target` with files of the same names, or a CSV file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from rvedit.datasets.sources.base import Categories, Columns, Row, Source, category_of_instruction
from rvedit.io.errors import UserError
from rvedit.io.records import Category
from rvedit.io.tables import BadRow, numbered_lines

_SIDES = ("source", "target", "mask")
_COMMON_INSTRUCTION = "instruction.txt"


class Pairs(Source):
    """The layouts of `rvedit prepare pairs`.

    - `source/NAME.*` and `target/NAME.*`, each a video, an image or a folder of images, and `NAME.txt` with
      the instruction, beside these folders or in one of them; `instruction.txt` beside the folders is the
      instruction of pairs without their own. `mask/NAME.*` may mark what the edit changes.
    - CSV files with the columns source,target,instruction and, if wanted, mask and reference_image.
    """

    name = "pairs"
    licence = "the user's own"
    expected = "folders source and target, or a CSV file with the columns source,target,instruction"
    patterns = ("*.csv", "*.tsv")
    columns: ClassVar[Columns] = dict.fromkeys((".csv", ".tsv"), ("source", "target", "instruction"))
    reference_column = "reference_image"
    mask_column = "mask"
    categories: ClassVar[Categories] = {"pairs": None}
    same_rate = True

    def metadata(self, folder: Path) -> list[Path]:
        """Return the CSV files of a folder, or without any the folder itself if it has `source`."""
        return super().metadata(folder) or ([folder] if (folder / "source").is_dir() else [])

    def clip_folders(self, folder: Path, file: Path) -> list[Path]:
        """Return the folder alone: paths are relative to it."""
        return [folder]

    def categorize(self, file: Path, target: str, instruction: str) -> tuple[str, Category | None]:
        """Return `pairs`, and the category of the instruction's first verb."""
        return self.name, category_of_instruction(instruction)

    def read(self, file: Path) -> Iterator[Row | BadRow] | None:
        """See `Source`; also reads a folder."""
        return self._read_folder(file) if file.is_dir() else super().read(file)

    def _read_folder(self, folder: Path) -> Iterator[Row | BadRow]:
        files = {side: _by_stem(folder / side) for side in _SIDES}
        names = sorted(files["source"].keys() | files["target"].keys())
        for number, name in enumerate(names, start=1):
            found = {side: files[side].get(name, []) for side in _SIDES}
            try:
                instruction = _instruction(folder, name)
            except UserError as error:
                yield BadRow(folder, number, str(error))
                continue
            if problem := _problem(name, found):
                yield BadRow(folder, number, problem)
                continue
            source, target, *mask = (f"{side}/{path.name}" for side in _SIDES for path in found[side])
            category = self.categorize(folder, target, instruction)
            yield Row(folder, number, source, target, instruction, *category, mask=next(iter(mask), None))


def _by_stem(folder: Path) -> dict[str, list[Path]]:
    """Return the clips of a folder by their names without suffix; texts and hidden files are left out."""
    clips: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.suffix.lower() != ".txt" and not path.name.startswith("."):
            clips[path.name if path.is_dir() else path.stem].append(path)
    return clips


def _problem(name: str, found: dict[str, list[Path]]) -> str | None:
    """Return why the files of a name are no pair, or None if they are one."""
    for side, paths in found.items():
        if len(paths) > 1:
            return f"{name}: {side} has {' and '.join(path.name for path in paths)}: keep one of them"
        if not paths and side != "mask":
            return f"{name}: there is no {side}"
    return None


def _instruction(folder: Path, name: str) -> str:
    """Return the text of the first instruction file of a pair. Raises UserError without any."""
    places = [folder / f"{name}.txt", *(folder / side / f"{name}.txt" for side in _SIDES[:2])]
    file = next((path for path in (*places, folder / _COMMON_INSTRUCTION) if path.is_file()), None)
    if file is None:
        raise UserError(f"{name}: there is no {name}.txt with its instruction, and no {_COMMON_INSTRUCTION}")
    return " ".join(line.strip() for _, line in numbered_lines(file)).strip()

"""Base class of dataset readers, and what they share."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rvedit.io.records import Category
from rvedit.io.tables import BadRow, WrongColumns, has_column, normalize, read_table

Columns = Mapping[str, tuple[str, str, str]]
"""Names of the columns of source, target and instruction, by the suffix of the metadata file."""
Categories = Mapping[str, Category | None]
"""The paper's categories by the dataset's own; None for edits that its benchmark does not have."""


@dataclass(frozen=True)
class Row:
    """One row of metadata, with paths as the metadata spell them."""

    file: Path
    number: int
    """Row number from 1, without the header."""
    source: str
    target: str
    instruction: str
    dataset_category: str
    """The dataset's own name of the category."""
    category: Category | None
    """The paper's category; None for edits that its benchmark does not have."""
    reference_image: str | None = None
    """Path of a picture of what the instruction refers to."""
    has_embedded_image: bool = False
    """Whether the row holds that picture itself, in a column of bytes."""
    mask: str | None = None
    """Path of a clip or an image that is white where the edit changes the source."""

    @property
    def files(self) -> dict[str, str]:
        """Return the paths of source and target, and of reference image and mask if there are any."""
        optional = {"reference image": self.reference_image, "mask": self.mask}
        present = {name: path for name, path in optional.items() if path}
        return {"source": self.source, "target": self.target, **present}


class Source:
    """Reader of one training dataset; subclasses describe its files and categories."""

    name: ClassVar[str]
    licence: ClassVar[str]
    expected: ClassVar[str]
    """Description of its metadata files, for error messages."""
    patterns: ClassVar[tuple[str, ...]]
    """Glob patterns of its metadata files."""
    columns: ClassVar[Columns]
    reference_column: ClassVar[str | None] = None
    """Column with the paths of reference images, which a file need not have."""
    embedded_column: ClassVar[str | None] = None
    """Column of parquet files with reference images as bytes, which a file need not have."""
    mask_column: ClassVar[str | None] = None
    """Column with the paths of masks, which a file need not have."""
    same_rate: ClassVar[bool] = False
    """Whether the clips of a pair must have the same frame rate."""
    categories: ClassVar[Categories]
    """Its known categories."""
    extract_to: ClassVar[str] = "."
    """Folder to extract its archives to, relative to their own."""
    id_fields: ClassVar[tuple[str, ...]] = ("source", "target", "instruction")
    """Fields that identify a triplet."""

    def metadata(self, folder: Path) -> list[Path]:
        """Return the metadata files in a folder, in reading order."""
        return sorted(file for pattern in self.patterns for file in folder.glob(_in_any_case(pattern)))

    def clip_folders(self, folder: Path, file: Path) -> list[Path]:
        """Return the folders to look for the clips of a metadata file of `folder` in, most likely first."""
        return [folder, file.parent, *subfolders(folder)]

    def categorize(self, file: Path, target: str, instruction: str) -> tuple[str, Category | None]:
        """Return a row's category as the dataset names it, and the paper's."""
        raise NotImplementedError

    def read(self, file: Path) -> Iterator[Row | BadRow] | None:
        """Return the rows of a metadata file, or None if it has another format."""
        columns = self.columns[file.suffix.lower()]
        try:
            rows = read_table(file, columns, [c for c in (self.reference_column, self.mask_column) if c])
        except WrongColumns:
            return None
        is_embedded = self.embedded_column is not None and has_column(file, self.embedded_column)
        return (
            row if isinstance(row, BadRow) else self._parse(file, *row, columns, is_embedded) for row in rows
        )

    def _parse(
        self, file: Path, number: int, texts: Mapping[str, str], columns: Sequence[str], is_embedded: bool
    ) -> Row:
        source, target, instruction = (texts[name] for name in columns)
        category = self.categorize(file, target, instruction)
        picture, mask = (
            texts.get(column or "") or None for column in (self.reference_column, self.mask_column)
        )
        return Row(file, number, source, target, instruction, *category, picture, is_embedded, mask)


_CATEGORY_OF_VERB = {
    Category.REMOVE: "remove erase delete eliminate",
    Category.ADD: "add insert place put introduce include",
    Category.CHANGE: "replace change swap turn make transform convert modify recolor color alter substitute",
}
_VERBS = {verb: category for category, verbs in _CATEGORY_OF_VERB.items() for verb in verbs.split()}


def category_of_instruction(instruction: str) -> Category | None:
    """Return the category of an instruction's first known verb, or None without one."""
    words = re.findall(r"[a-z]+", instruction.lower())
    return next((_VERBS[word] for word in words if word in _VERBS), None)


def row_id(row: Row, id_fields: tuple[str, ...]) -> str:
    """Return a row's id: the target's name and a digest of `id_fields`, wherever the files are."""
    source, target = normalize(row.source), normalize(row.target)
    fields = {"source": source, "target": target, "instruction": row.instruction.strip()}
    identity = "\0".join(fields[name] for name in id_fields)
    digest = hashlib.blake2b(identity.encode(), digest_size=6).hexdigest()
    name, _ = posixpath.splitext(posixpath.basename(target))
    return f"{name}-{digest}"


def _in_any_case(pattern: str) -> str:
    """Return a glob pattern that matches capitals and small letters alike: A.CSV is a *.csv."""
    return "".join(f"[{c.lower()}{c.upper()}]" if c.isalpha() else c for c in pattern)


def folder_names(path: str) -> list[str]:
    """Return the folder names of a path without part numbers: global_style2/x.mp4 gives global_style."""
    return [re.sub(r"\d+$", "", part) for part in normalize(path).split("/")[:-1]]


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder."""
    return sorted(path for path in folder.glob("*") if path.is_dir())

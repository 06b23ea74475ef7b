"""What every training set's reader gives: rows of one form, whatever the files look like."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rvedit.io.records import Category


@dataclass(frozen=True)
class Row:
    """One row of metadata; paths are as the metadata spell them."""

    file: Path
    number: int
    """Counts the file's rows from 1, without a header."""
    source: str
    target: str
    instruction: str
    word: str
    """The data set's own word for the kind of edit."""
    category: Category | None

    @property
    def clips(self) -> dict[str, str]:
        """The paths of both sides."""
        return {"source": self.source, "target": self.target}


@dataclass(frozen=True)
class BadRow:
    """A row that could not be read, and why."""

    file: Path
    number: int
    why: str


@dataclass(frozen=True)
class Reading:
    """How to read one metadata file, and the folders that its clips may lie in, likeliest first."""

    rows: Iterator[Row | BadRow]
    folders: tuple[Path, ...]


class Source(Protocol):
    """A training set."""

    name: str
    licence: str
    expected: str
    """What its metadata look like, in words."""
    extracted_in: str
    """Where its archives belong, from the folder that they lie in."""

    @property
    def words(self) -> Mapping[str, Category | None]:
        """The kinds of edit it is known to have, in its own words, and ours for them."""

    @property
    def identity(self) -> tuple[str, ...]:
        """The fields that tell one triplet from another."""

    def metadata(self, folder: Path) -> list[Path]:
        """The metadata files in a folder, in the order in which they are to be read."""

    def read(self, folder: Path, file: Path) -> Reading | None:
        """How to read a metadata file of `folder`; none where it is not one of this set's."""


_CATEGORY_OF_VERB = {
    Category.REMOVE: "remove erase delete eliminate",
    Category.ADD: "add insert place put introduce include",
    Category.CHANGE: "replace change swap turn make transform convert modify recolor color alter substitute",
}
_VERBS = {verb: category for category, verbs in _CATEGORY_OF_VERB.items() for verb in verbs.split()}


def category_of_instruction(instruction: str) -> Category | None:
    """The category that an instruction's first verb speaks of; none where no known verb is found."""
    words = re.findall(r"[a-z]+", instruction.lower())
    return next((_VERBS[word] for word in words if word in _VERBS), None)


def row_id(row: Row, identity: tuple[str, ...]) -> str:
    """A row's id: the target's name and a digest of what makes the row itself.

    The same wherever the files lie and in whatever order they are read.
    """
    fields = {"source": tidy(row.source), "target": tidy(row.target), "instruction": row.instruction.strip()}
    digest = hashlib.blake2b("\0".join(fields[name] for name in identity).encode(), digest_size=6).hexdigest()
    name, _ = posixpath.splitext(posixpath.basename(fields["target"]))
    return f"{name}-{digest}"


def tidy(path: str) -> str:
    """A path of the metadata with forward slashes and without a leading `./`."""
    return posixpath.normpath(path.strip().replace("\\", "/"))


def folder_words(path: str) -> list[str]:
    """The folders of a path without the numbers of their parts: global_style2/x.mp4 gives global_style."""
    return [re.sub(r"\d+$", "", part) for part in tidy(path).split("/")[:-1]]

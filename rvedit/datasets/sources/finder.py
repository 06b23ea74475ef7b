"""Where clips are, and which archives hold those that are not there."""

from __future__ import annotations

import os
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rvedit.datasets.sources.base import tidy

_ARCHIVE = re.compile(
    r"(?P<name>.+?\.(?P<kind>tar\.gz|tgz|tar|zip))(?P<part>\.\d+|\.part\w+)?$", re.IGNORECASE
)


_OPTIONAL = frozenset({"openve-3m", "reco-data", "ditto-1m", "videos"})


@dataclass(frozen=True)
class Clip:
    """A file of clips' bytes: where it is, and a stamp that changes when the file does."""

    path: str
    size: int
    """Bytes."""
    stamp: str


class Finder:
    """Looks clips up in folders, listing each folder once: millions of single look-ups take hours on NFS."""

    def __init__(self, roots: Iterable[Path]) -> None:
        self._listings: dict[str, frozenset[str]] = {}
        self._optional = _OPTIONAL | {root.name.lower() for root in roots}

    def find(self, path: str, folders: Sequence[Path]) -> list[str]:
        """The files of that path in `folders`: one, none, or, where it is not clear which is meant, more.

        Paths in the wild begin with the data set's own folder or not; no other part of them is optional,
        since source/a.mp4 and local/a.mp4 are two clips.
        """
        whole = tidy(path)
        if os.path.isabs(whole):
            return [whole] if self._is_listed(whole) else []
        first, _, rest = whole.partition("/")
        relatives = (whole, rest) if rest and first.lower() in self._optional else (whole,)
        places = dict.fromkeys(f"{folder}{os.sep}{relative}" for folder in folders for relative in relatives)
        return [place for place in places if self._is_listed(place)]

    def _is_listed(self, path: str) -> bool:
        folder, name = os.path.split(path)
        if folder not in self._listings:
            try:
                self._listings[folder] = frozenset(os.listdir(folder))
            except OSError:
                self._listings[folder] = frozenset()
        return name in self._listings[folder]


def stat_clip(path: str) -> Clip | None:
    """The clip's size and stamp; none where it is not a file with something in it."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    if not os.path.isfile(path) or not status.st_size:
        return None
    return Clip(path, status.st_size, f"{status.st_size}.{status.st_mtime_ns}")


def archives_beside(missing: Iterable[tuple[str, Sequence[Path]]], extracted_in: str = ".") -> list[str]:
    """For clips that are not there (path and folders, as in `find`): the archives where they were looked for.

    One line for each archive, however many parts it has, with the command that extracts it (to
    `extracted_in`, from the archive's folder).
    """
    folders = set()
    for path, bases in missing:
        relative = os.path.dirname(tidy(path))
        for base in bases:
            place = os.path.join(base, relative)
            while len(place) >= len(str(base)) and place not in folders:
                folders.add(place)
                place = os.path.dirname(place)
    lines = []
    for folder in sorted(folders):
        parts: dict[tuple[str, str], int] = defaultdict(int)
        for name in os.listdir(folder) if os.path.isdir(folder) else ():
            match = _ARCHIVE.fullmatch(name)
            if match:
                parts[match["name"], match["kind"].lower() if not match["part"] else "parts"] += 1
        for (name, kind), count in sorted(parts.items()):
            archive = f"{os.path.join(folder, name)}{_of_parts(kind, count)}"
            lines.append(f"{archive}: {_command(folder, name, kind, extracted_in)}")
    return lines


def _of_parts(kind: str, count: int) -> str:
    return f".* ({count} part{'s' if count > 1 else ''})" if kind == "parts" else ""


def _command(folder: str, name: str, kind: str, extracted_in: str) -> str:
    """A line for a shell."""
    file, is_zip = shlex.quote(name), name.lower().endswith(".zip")
    unpack = "tar -x" if name.lower().endswith(".tar") else "tar -xz"
    to = "" if extracted_in == "." else f" {'-d' if is_zip else '-C'} {shlex.quote(extracted_in)}"
    if kind == "parts":
        todo = f"cat {file}.* > {file} && unzip {file}{to}" if is_zip else f"cat {file}.* | {unpack}{to}"
    else:
        todo = f"unzip {file}{to}" if is_zip else f"{unpack}f {file}{to}"
    return f"cd {shlex.quote(folder)} && {todo}"

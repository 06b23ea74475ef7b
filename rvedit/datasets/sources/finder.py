"""Find clips on disk, and the archives that may contain missing ones."""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rvedit.io.tables import normalize

_ARCHIVE = re.compile(r"(?P<name>.+?\.(tar\.gz|tgz|tar|zip))(?P<part>\.\d+|\.part\w+)?$", re.IGNORECASE)
_OPTIONAL = frozenset({"openve-3m", "reco-data", "ditto-1m", "videos"})


@dataclass(frozen=True)
class ClipFile:
    """A clip's path, size, and a stamp that changes with the file."""

    path: str
    size: int
    """Bytes."""
    stamp: str


class Finder:
    """Lookup of clips in folders; lists each folder once, because millions of lookups take hours on NFS."""

    def __init__(self, roots: Iterable[Path]) -> None:
        self._listings: dict[str, frozenset[str]] = {}
        self._optional = _OPTIONAL | {root.name.lower() for root in roots}

    def find(self, path: str, folders: Sequence[Path]) -> list[str]:
        """Return the existing files for a path in `folders`: one, none, or several if it is ambiguous.

        Paths may begin with the dataset's own folder or not; no other part is optional, since source/a.mp4
        and local/a.mp4 are two clips.
        """
        full = normalize(path)
        if os.path.isabs(full):
            return [full] if self._is_listed(full) else []
        first, _, rest = full.partition("/")
        relatives = (full, rest) if rest and first.lower() in self._optional else (full,)
        paths = dict.fromkeys(f"{folder}{os.sep}{relative}" for folder in folders for relative in relatives)
        return [candidate for candidate in paths if self._is_listed(candidate)]

    def _is_listed(self, path: str) -> bool:
        folder, name = os.path.split(path)
        if folder not in self._listings:
            try:
                self._listings[folder] = frozenset(os.listdir(folder))
            except OSError:
                self._listings[folder] = frozenset()
        return name in self._listings[folder]


def stat_clip(path: str) -> ClipFile:
    """Return a clip's size and stamp; size 0 and the stamp "none" if it is missing or empty.

    A folder of images has the sum of its files' sizes, and the latest of their times.
    """
    if os.path.isdir(path):
        files = [entry.stat() for entry in os.scandir(path) if entry.is_file()]
        size, latest = sum(file.st_size for file in files), max((f.st_mtime_ns for f in files), default=0)
        return ClipFile(path, size, f"{len(files)}.{size}.{latest}")
    status = os.stat(path) if os.path.isfile(path) else None
    if not status or not status.st_size:
        return ClipFile(path, 0, "none")
    return ClipFile(path, status.st_size, f"{status.st_size}.{status.st_mtime_ns}")


def find_archives(missing: Iterable[tuple[str, Sequence[Path]]], extract_to: str = ".") -> list[str]:
    """Return a line for each archive in the folders of missing clips (path and folders as in `find`).

    Each line has the archive, of one or more parts, and the command that extracts it to `extract_to`
    (relative to the archive's folder).
    """
    folders = set()
    for path, bases in missing:
        relative = os.path.dirname(normalize(path))
        for base in bases:
            parent = os.path.join(base, relative)
            while len(parent) >= len(str(base)) and parent not in folders:
                folders.add(parent)
                parent = os.path.dirname(parent)
    lines = []
    for folder in sorted(folders):
        matches = map(_ARCHIVE.fullmatch, os.listdir(folder) if os.path.isdir(folder) else ())
        archives = Counter((match["name"], bool(match["part"])) for match in matches if match)
        for (name, is_split), count in sorted(archives.items()):
            parts_note = f".* ({count} part{'s' if count > 1 else ''})" if is_split else ""
            command = _extract_command(folder, name, is_split, extract_to)
            lines.append(f"{os.path.join(folder, name)}{parts_note}: {command}")
    return lines


def _extract_command(folder: str, name: str, is_split: bool, extract_to: str) -> str:
    """Return a shell command that extracts an archive."""
    file, is_zip = shlex.quote(name), name.lower().endswith(".zip")
    unpack = "tar -x" if name.lower().endswith(".tar") else "tar -xz"
    to = "" if extract_to == "." else f" {'-d' if is_zip else '-C'} {shlex.quote(extract_to)}"
    if is_split:
        command = f"cat {file}.* > {file} && unzip {file}{to}" if is_zip else f"cat {file}.* | {unpack}{to}"
    else:
        command = f"unzip {file}{to}" if is_zip else f"{unpack}f {file}{to}"
    return f"cd {shlex.quote(folder)} && {command}"

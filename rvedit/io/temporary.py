"""Temporary files: written to beside their final path, then renamed, which is atomic in one folder."""

from __future__ import annotations

import os
import platform
import re
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from rvedit.io.errors import UserError

MAX_NAME_BYTES = 255
"""Length of file names that file systems accept."""

_HOST = f"{zlib.crc32(platform.node().encode()):08x}"
_TEMPORARY = re.compile(rf"\..*\.{_HOST}-(\d+)-[0-9a-f]{{8}}\.part(\.[^.]*)?", re.DOTALL)


def shorten(name: str, num_bytes: int) -> str:
    """Return a name, or the characters at its beginning that fit into a number of bytes."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= num_bytes else encoded[:num_bytes].decode(errors="ignore")


def temporary_sibling(path: str | Path) -> Path:
    """Return a new hidden path in `path`'s folder, with its suffix, to write to and then rename to `path`.

    Creates nothing. The name tells the host and the process, for `remove_stale`.
    """
    path = Path(path)
    end = f".{_HOST}-{os.getpid()}-{secrets.token_hex(4)}.part{path.suffix}"
    stem = shorten(path.stem, MAX_NAME_BYTES - 1 - len(os.fsencode(end)))
    return path.with_name(f".{stem}{end}")


@contextmanager
def atomic_path(path: Path, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename it to `path` at the end of the block.

    Without `overwrite` a file that exists by then is kept: of several processes, the first writes it. Removes
    the temporary file on any error; raises UserError if it cannot be written.
    """
    remove_stale(path.parent)
    temporary = temporary_sibling(path)
    try:
        yield temporary
        if overwrite:
            temporary.replace(path)
        else:
            _rename_once(temporary, path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: cannot be written ({reason}): free space or change the folder") from None
    finally:
        temporary.unlink(missing_ok=True)


def replace_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a folder of a temporary name, and put it in the place of `folder`."""
    part = temporary_sibling(folder)
    write(part)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def _rename_once(temporary: Path, path: Path) -> None:
    """Give a file its name unless another one has it."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError:  # no hard links in this file system
        temporary.replace(path)


@cache
def remove_stale(folder: Path) -> None:
    """Remove the temporary files in a folder that killed processes of this host left there.

    Looks once: folders may hold many files, each of which is written in turn.
    """
    with suppress(OSError):
        for path in folder.iterdir():
            match = _TEMPORARY.fullmatch(path.name)
            if match and not _is_running(int(match[1])):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_running(process: int) -> bool:
    if os.name != "posix":
        return True  # signal 0 is another one there
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # a process of another user
        pass
    return True

"""Read lists: CSV, JSON and parquet files as rows by column name, and lines of text, with errors by row.

Every list that a user wrote or downloaded is read here. Texts are in UTF-8, or in UTF-16 with a byte order
mark, and have any line breaks.
"""

from __future__ import annotations

import codecs
import csv
import json
import posixpath
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rvedit.io.errors import UserError

_DELIMITERS = ",;\t|"
_CLIP_SUFFIXES = (".mp4", ".mov", ".webm", ".mkv", ".avi")
_NOT_UTF8 = "not UTF-8: save the file as UTF-8"
csv.field_size_limit(2**24)  # instructions of any length


@dataclass(frozen=True)
class BadRow:
    """A row that could not be read, and why."""

    file: Path
    number: int
    reason: str


class WrongColumns(UserError):
    """A table lacks a column."""


def read_table(
    file: Path, columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, str]] | BadRow]:
    """Return each row's number (from 1, without the header) and its texts by column; blank rows are left out.

    `optional` columns may be missing, and are then empty. Raises WrongColumns without one of `columns`, and
    UserError if the file cannot be read.
    """
    read_items = {".json": _json_items, ".parquet": _parquet_items}.get(file.suffix.lower(), _csv_items)
    items = read_items(file, columns)
    names = (*columns, *optional)
    return (_parse_row(file, n, item, columns, names) for n, item in enumerate(items, start=1) if item != {})


def _parse_row(
    file: Path, number: int, item: object, required: Sequence[str], names: Sequence[str]
) -> tuple[int, dict[str, str]] | BadRow:
    if isinstance(item, csv.Error):
        return BadRow(file, number, str(item))
    if not isinstance(item, dict):
        return BadRow(file, number, f"not an object but a {type(item).__name__}")
    for name in names:
        if name in required and name not in item:
            return BadRow(file, number, f"{name} is missing")
        if not isinstance(item.get(name) or "", str):
            return BadRow(file, number, f"{name} is {item[name]!r}, not text")
    return number, {name: item.get(name) or "" for name in names}


def _csv_items(file: Path, columns: Sequence[str]) -> Iterator[dict[str, str] | csv.Error]:
    """Return the rows of a CSV file: `{}` for a row of empty fields, and errors for unreadable rows.

    Accepts quotes, other columns and any order. Instructions contain most delimiters, so the header decides:
    the delimiter is the one that gives it the most of `columns`.
    """
    header = next((line.strip() for line in text_lines(file) if line.strip()), "")
    if "\0" in header:
        raise UserError(f"{file}: {_NOT_UTF8}")
    names = {delimiter: _split(header, delimiter) for delimiter in _DELIMITERS}
    delimiter = max(names, key=lambda delimiter: len({*columns} & {*names[delimiter]}))
    if missing := [name for name in columns if name not in names[delimiter]]:
        start = header.encode(errors="replace").decode()[:80]
        raise WrongColumns(
            f"{file}: has no column {missing[0]}: needs {', '.join(columns)}; its first line is {start!r}"
        )
    return _split_csv(file, delimiter, columns)


def _split(header: str, delimiter: str) -> list[str]:
    return [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]


def _split_csv(file: Path, delimiter: str, columns: Sequence[str]) -> Iterator[dict[str, str] | csv.Error]:
    reader = csv.reader(text_lines(file), delimiter=delimiter, skipinitialspace=True, strict=True)
    names = [name.strip() for name in next(filter(None, reader))]
    while True:
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield csv.Error("a quotation mark is never closed, or not doubled in a quoted field")
            continue
        if values:  # not a blank line
            yield _csv_item(names, values, delimiter, columns)


def _csv_item(
    names: Sequence[str], values: Sequence[str], delimiter: str, columns: Sequence[str]
) -> dict[str, str] | csv.Error:
    if not any(map(str.strip, values)):
        return {}
    spans_rows = [value for value in values if "\n" in value and delimiter in value]
    if any(suffix in value for value in spans_rows for suffix in _CLIP_SUFFIXES):
        return csv.Error("a quotation mark is never closed: the next rows are part of this one")
    counts = f"{len(values)} fields for {len(names)} columns"
    if {*names[len(values) :]} & {*columns}:
        return csv.Error(f"{counts}: add the missing ones")
    if any(map(str.strip, values[len(names) :])):
        return csv.Error(f"{counts}: quote the fields that contain {delimiter!r}")
    if not _is_utf8("".join(values)):
        return csv.Error(_NOT_UTF8)
    return dict(zip(names, values, strict=False))


def _json_items(file: Path, columns: Sequence[str]) -> list[Any]:
    """Return the items of a JSON array."""
    text = "".join(line for _, line in numbered_lines(file))
    try:
        items = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{file}, line {error.lineno}: not JSON ({error.msg}): get another copy") from None
    is_table = isinstance(items, list) and any(
        isinstance(item, dict) and set(columns) <= set(item) for item in items
    )
    if not is_table:
        raise WrongColumns(f"{file}: not a list of objects with {', '.join(columns)}")
    return list(items)


def _parquet_items(file: Path, columns: Sequence[str]) -> Iterable[dict[str, Any]]:
    """Return the rows of a parquet file; other columns are not read."""
    from pyarrow import ArrowInvalid, parquet

    try:
        table = parquet.ParquetFile(file)
    except (ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{file}: not a parquet file ({reason}): get another copy") from None
    if missing := [name for name in columns if name not in table.schema_arrow.names]:
        raise WrongColumns(f"{file}: has no column {missing[0]}: needs {', '.join(columns)}")
    return (item for batch in table.iter_batches(columns=list(columns)) for item in batch.to_pylist())


def has_column(file: Path, column: str) -> bool:
    """Return whether a parquet file has a column; False for other files."""
    from pyarrow import parquet

    return file.suffix.lower() == ".parquet" and column in parquet.ParquetFile(file).schema_arrow.names


def read_bytes(file: Path, column: str, rows: Container[int]) -> Iterator[tuple[int, bytes | None]]:
    """Yield the numbers of these rows of a parquet file, from 1, and their values in a column of bytes."""
    from pyarrow import parquet

    batches = parquet.ParquetFile(file).iter_batches(batch_size=64, columns=[column])
    values = (item[column] for batch in batches for item in batch.to_pylist())
    for number, value in enumerate(values, start=1):
        if number in rows:
            value = value.get("bytes") if isinstance(value, dict) else value  # of the type Image of datasets
            yield number, value if isinstance(value, bytes) and value else None


def text_lines(file: Path) -> Iterator[str]:
    """Yield a text file's lines with their line breaks; bytes that are not UTF-8 become lone surrogates.

    Raises UserError if the file cannot be read.
    """
    try:
        with file.open("rb") as data:
            is_utf16 = data.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        encoding = "utf-16" if is_utf16 else "utf-8-sig"
        with file.open(encoding=encoding, errors="surrogateescape", newline="") as lines:
            yield from lines
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}): check its permissions") from None
    except UnicodeDecodeError:
        raise UserError(f"{file}: its UTF-16 text is damaged: save it as UTF-8") from None


def numbered_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yield each line's number, from 1, and its text; raises UserError with the line that is not UTF-8."""
    for number, line in enumerate(text_lines(file), start=1):
        if not _is_utf8(line):
            raise UserError(f"{file}, line {number}: {_NOT_UTF8}")
        yield number, line


def _is_utf8(text: str) -> bool:
    """Return whether there are no lone surrogates, nor the null bytes of UTF-16 without a byte order mark."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def normalize(path: str) -> str:
    """Return a list's path with forward slashes, without blanks around it and without a leading `./`."""
    return posixpath.normpath(path.strip().replace("\\", "/"))

"""Read CSV, JSON and parquet files as rows by column name; unreadable rows become `BadRow`."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rvedit.io.errors import UserError

_DELIMITERS = ";,\t"
csv.field_size_limit(2**24)  # instructions of any length


@dataclass(frozen=True)
class BadRow:
    """A row that could not be read, and why."""

    file: Path
    number: int
    reason: str


def read_table(file: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[str]] | BadRow] | None:
    """Return the rows' numbers (from 1) and values of `columns`, or None if the file has no such columns."""
    read_items = {".csv": _csv_items, ".json": _json_items, ".parquet": _parquet_items}[file.suffix]
    items = read_items(file, columns)
    if items is None:
        return None
    return (_parse_row(file, number, item, columns) for number, item in enumerate(items, start=1))


def _parse_row(
    file: Path, number: int, item: object, columns: Sequence[str]
) -> tuple[int, list[str]] | BadRow:
    if isinstance(item, csv.Error):
        return BadRow(file, number, str(item))
    if not isinstance(item, dict):
        return BadRow(file, number, f"not an object but a {type(item).__name__}")
    for name in columns:
        if name not in item:
            return BadRow(file, number, f"{name} is missing")
        if not isinstance(item[name] or "", str):
            return BadRow(file, number, f"{name} is {item[name]!r}, not text")
    return number, [item[name] or "" for name in columns]


def _csv_items(file: Path, columns: Sequence[str]) -> Iterator[dict[str, str] | csv.Error] | None:
    """Return the rows of a CSV file, with errors in place of unreadable ones.

    Accepts a byte order mark, quotes, other columns and any order; the delimiter is the one of `;`, `,` and
    tab that gives the header these columns.
    """
    try:
        with file.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
            header = lines.readline()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}): check its permissions") from None
    for delimiter in _DELIMITERS:
        names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
        if set(columns) <= set(names):
            return _split_csv(file, delimiter)
    return None


def _split_csv(file: Path, delimiter: str) -> Iterator[dict[str, str] | csv.Error]:
    # Bytes that are not UTF-8 become lone surrogates, so that only their own row fails.
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        reader = csv.reader(lines, delimiter=delimiter)
        names = [name.strip() for name in next(reader)]
        while True:
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield csv.Error(f"not a CSV row: {error}")
                continue
            if values:  # not a blank line
                yield _csv_item(names, values, delimiter)


def _csv_item(names: Sequence[str], values: Sequence[str], delimiter: str) -> dict[str, str] | csv.Error:
    if any("\n" in value and ".mp4" in value for value in values):
        return csv.Error("a quotation mark is never closed: the next rows are part of this one")
    counts = f"{len(values)} fields for {len(names)} columns"
    if len(values) < len(names):
        return csv.Error(f"{counts}: add the missing ones")
    if len(values) > len(names):
        return csv.Error(f"{counts}: quote the fields that contain {delimiter!r}")
    try:
        "".join(values).encode()
    except UnicodeEncodeError:  # a surrogate
        return csv.Error("not UTF-8: save the file as UTF-8")
    return dict(zip(names, values, strict=True))


def _json_items(file: Path, columns: Sequence[str]) -> list[Any] | None:
    """Return the items of a JSON array."""
    try:
        items = json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(f"{file}, line {error.lineno}: not JSON ({error.msg}): get another copy") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error}): get another copy") from None
    is_table = isinstance(items, list) and any(
        isinstance(item, dict) and set(columns) <= set(item) for item in items
    )
    return items if is_table else None


def _parquet_items(file: Path, columns: Sequence[str]) -> Iterable[dict[str, Any]] | None:
    """Return the rows of a parquet file; other columns are not read."""
    from pyarrow import ArrowInvalid, parquet

    try:
        table = parquet.ParquetFile(file)
    except (ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{file}: not a parquet file ({reason}): get another copy") from None
    if not set(columns) <= set(table.schema_arrow.names):
        return None
    return (item for batch in table.iter_batches(columns=list(columns)) for item in batch.to_pylist())

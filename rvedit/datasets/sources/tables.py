"""CSV, JSON and parquet files as rows by column name; what cannot be read is said, row by row."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rvedit.datasets.sources.base import BadRow, Row
from rvedit.io.errors import UserError
from rvedit.io.records import Category

Fields = dict[str, str]
_DELIMITERS = ";,\t"
csv.field_size_limit(2**24)  # instructions of any length


def as_rows(
    file: Path,
    read: Iterable[tuple[int, Fields] | BadRow],
    columns: Sequence[str],
    word: str,
    category: Category | None,
) -> Iterator[Row | BadRow]:
    """Rows of one kind of edit from a table's; `columns` names those of source, target and instruction."""
    for row in read:
        if isinstance(row, BadRow):
            yield row
        else:
            number, fields = row
            source, target, instruction = (fields[name] for name in columns)
            yield Row(file, number, source, target, instruction, word, category)


def csv_rows(file: Path, columns: Sequence[str]) -> Iterator[tuple[int, Fields] | BadRow] | None:
    """The rows of a CSV file that has `columns`, else none.

    A byte order mark, quotes, more columns and any order of them are fine; the delimiter is the one of
    `;`, `,` and tab that gives the header these columns.
    """
    try:
        with file.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
            header = lines.readline()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}): check its permissions") from None
    for delimiter in _DELIMITERS:
        names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
        if set(columns) <= set(names):
            return _csv_rows(file, delimiter, columns)
    return None


def _csv_rows(file: Path, delimiter: str, columns: Sequence[str]) -> Iterator[tuple[int, Fields] | BadRow]:
    # Bytes that are no UTF-8 come through as lone surrogates: they spoil their own row alone.
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        reader = csv.reader(lines, delimiter=delimiter)
        names = [name.strip() for name in next(reader)]
        number = 0
        while True:
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                number += 1
                yield BadRow(file, number, f"not a row of a CSV file: {error}")
                continue
            if not values:  # a blank line
                continue
            number += 1
            why = _csv_problem(names, values, delimiter)
            fields = dict(zip(names, values, strict=False))
            yield (BadRow(file, number, why) if why else (number, {name: fields[name] for name in columns}))


def _csv_problem(names: Sequence[str], values: Sequence[str], delimiter: str) -> str | None:
    if any("\n" in value and ".mp4" in value for value in values):
        return "a quotation mark is never closed, and swallows the rows after it"
    if len(values) < len(names):
        return f"{len(values)} fields for {len(names)} columns: add what is missing"
    if len(values) > len(names):
        return f"{len(values)} fields for {len(names)} columns: quote the fields that contain {delimiter!r}"
    try:
        "".join(values).encode()
    except UnicodeEncodeError:  # a surrogate
        return "not UTF-8: save the file as UTF-8"
    return None


def json_rows(file: Path, columns: Sequence[str]) -> Iterator[tuple[int, Fields] | BadRow] | None:
    """The rows of a JSON array of objects, else none; raises UserError for broken JSON."""
    try:
        items = json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(f"{file}, line {error.lineno}: not JSON ({error.msg}): get another copy") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error}): get another copy") from None
    if not isinstance(items, list) or not any(_has(item, columns) for item in items):
        return None
    return _json_rows(file, items, columns)


def _has(item: object, columns: Sequence[str]) -> bool:
    return isinstance(item, dict) and set(columns) <= set(item)


def _json_rows(
    file: Path, items: Sequence[Any], columns: Sequence[str]
) -> Iterator[tuple[int, Fields] | BadRow]:
    for number, item in enumerate(items, start=1):
        yield _fields(file, number, item, columns)


def _fields(file: Path, number: int, item: object, columns: Sequence[str]) -> tuple[int, Fields] | BadRow:
    if not isinstance(item, dict):
        return BadRow(file, number, f"not an object but a {type(item).__name__}")
    missing = [name for name in columns if name not in item]
    if missing:
        return BadRow(file, number, f"has no {missing[0]}")
    wrong = [name for name in columns if not isinstance(item[name] or "", str)]
    if wrong:
        return BadRow(file, number, f"{wrong[0]} is {item[wrong[0]]!r}, not text")
    return number, {name: item[name] or "" for name in columns}


def parquet_rows(file: Path, columns: Sequence[str]) -> Iterator[tuple[int, Fields] | BadRow] | None:
    """The rows of a parquet file that has `columns`, else none; other columns are not read at all."""
    from pyarrow import ArrowInvalid, parquet

    try:
        table = parquet.ParquetFile(file)
    except (ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{file}: not a parquet file ({reason}): get another copy") from None
    if not set(columns) <= set(table.schema_arrow.names):
        return None
    return _parquet_rows(file, table, columns)


def _parquet_rows(file: Path, table: Any, columns: Sequence[str]) -> Iterator[tuple[int, Fields] | BadRow]:
    number = 0
    for batch in table.iter_batches(columns=list(columns)):
        for item in batch.to_pylist():
            number += 1
            yield _fields(file, number, item, columns)

"""Rows of JSON, CSV and Parquet files, one after the other, and the text in each.

A file is what its name says, before an ending such as .gz: `.jsonl`, `.ndjson` have a JSON value per line; `.json` is
an array, one object, or lines as well; `.csv`, `.tsv` have a header; `.parquet` is a table; any other is plain text.
"""

import csv
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mingpt_lightning.errors import UserError
from mingpt_lightning.text import pyarrow, read_text

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
ABSENT = object()


class Row(NamedTuple):
    """A row: where it is ("line 3"), its text, and without one, what is there instead ("is null")."""

    place: str
    text: str | None
    instead: str = ""


def format_of(file: Path) -> str:
    """How a file is read, by its name: jsonl, json, csv, parquet or text."""
    return FORMATS.get(plain_name(file).suffix.lower(), "text")


def plain_name(file: Path) -> Path:
    """A file's name without the ending of a compressed one."""
    return file.with_suffix("") if file.suffix.lower() in COMPRESSED else file


def read_rows(file: Path, field: str, where: str = "path", encoding: str | None = None) -> Iterator[Row]:
    """The rows of a file that isn't plain text, in order.

    field: where the text is in a row; "data.text" is the field `text` of the field `data`, where there is no field of
    that name. A row that is a text itself, as in an array of strings, needs none. where, encoding: see `read_text`.

    Raises UserError for a file that is not in the format that its name says (naming the line), or has no such column.
    """
    read = {"jsonl": json_lines, "json": json_values, "csv": csv_rows, "parquet": parquet_rows}[format_of(file)]
    for place, value in read(file, field, where, encoding):
        text = find(value, field)
        if isinstance(text, str):
            lone = re.search("[\ud800-\udfff]", text)  # JSON escapes can make them
            yield Row(place, None, "has a lone surrogate") if lone else Row(place, text)
        elif text is not ABSENT:
            yield Row(place, None, f"is {KINDS.get(type(text), 'no text')}")
        else:
            fields = f"there is {', '.join(map(repr, [*value][:20])) or 'nothing'}" if isinstance(value, dict) else ""
            yield Row(place, None, f"is missing; {fields or f'the row is {KINDS[type(value)]}'}")


def read_records(file: Path, field: str, where: str = "path", encoding: str | None = None) -> Iterator[tuple[str, Any]]:
    """The rows of a file that isn't plain text, whole: where each is, and what. A row of a table is a dict.

    field: a column that a CSV file has, by which its separator is found. Raises UserError like `read_rows`.
    """
    kind = format_of(file)
    if kind == "text":
        what = f"{file} is plain text by its name, not rows"
        raise UserError(what, where, f"Rename it if it is one of {', '.join(FORMATS)}.")
    if kind == "parquet":
        yield from parquet_records(file, where)
        return
    yield from {"jsonl": json_lines, "json": json_values, "csv": csv_rows}[kind](file, field, where, encoding)


KINDS = {
    type(None): "null",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
}


def find(row: Any, field: str) -> Any:
    """The value under a field, which may be nested ("data.text"); ABSENT where there is none."""
    if isinstance(row, str):
        return row
    if not isinstance(row, dict):
        return ABSENT
    if field in row:
        return row[field]
    first, dot, rest = field.partition(".")
    inner = row.get(first, ABSENT) if dot else ABSENT
    if isinstance(inner, dict):
        return find(inner, rest)
    return None if inner is None else ABSENT


def parse(text: str, where: str, fix: str) -> Any:
    """The value of JSON text. Raises UserError."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON: {error}", where, fix) from error


def json_lines(file: Path, field: str, where: str, encoding: str | None) -> Iterator[tuple[str, Any]]:
    """The values of a file with one per line; blank lines are none."""
    for number, line in enumerate(lines(read_text(file, where, encoding)), 1):
        if line.strip():
            yield f"line {number}", parse(line, f"{file}:{number}", f'Write {{"{field}": "..."}} a line.')


def json_values(file: Path, field: str, where: str, encoding: str | None) -> Iterator[tuple[str, Any]]:
    """The items of an array, which is held in memory as a whole; one object; or an object per line."""
    first = next((line for line in lines(read_text(file, where, encoding)) if line.strip()), "")
    try:
        per_line = not first.lstrip().startswith("[") and json.loads(first) is not None
    except (ValueError, RecursionError):
        per_line = False
    if per_line:
        yield from json_lines(file, field, where, encoding)
        return
    value = parse("".join(read_text(file, where, encoding)), str(file), f'Write [{{"{field}": "..."}}, ...].')
    yield from (
        (f"item {number}", item) for number, item in enumerate(value if isinstance(value, list) else [value], 1)
    )


def csv_rows(file: Path, field: str, where: str, encoding: str | None) -> Iterator[tuple[str, Any]]:
    """The rows under a header, by its names. The separator is the one that makes `field` a column."""
    csv.field_size_limit(2**31 - 1)  # without it, a text of 128 KiB is an error
    text = lines(read_text(file, where, encoding))
    first = next(text)
    separator = csv_separator(first, field) or ","
    reader = csv.reader(itertools.chain([first], text), delimiter=separator, strict=True)
    try:
        header = next(reader)
        if field not in header:
            raise no_column(file, field, header)
        for row in reader:
            if len(row) > len(header):
                what = f"there are {len(row)} columns, and {len(header)} in the header"
                raise UserError(what, f"{file}:{reader.line_num}", f'Quote text that has a "{separator}" in it.')
            if row:
                yield f"line {reader.line_num}", dict(zip(header, row, strict=False))
    except csv.Error as error:
        fix = "Check the quotes around it, and double those in it."
        raise UserError(f"not CSV: {error}", f"{file}:{reader.line_num}", fix) from error


def csv_separator(line: str, field: str) -> str | None:
    """What separates the columns of a header, one of which is `field`."""
    separators = (s for s in ",\t;" if s in line and field in next(csv.reader([line], delimiter=s), []))
    return next(separators, None)


def parquet_rows(file: Path, field: str, where: str, encoding: str | None) -> Iterator[tuple[str, Any]]:
    """The rows of a table, of which only the column of `field` is read."""
    arrow = pyarrow(file, where)
    from pyarrow import parquet, types

    def columns(fields: Iterable[Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
        for item in fields:
            kind = item.type.value_type if types.is_dictionary(item.type) else item.type
            yield prefix + item.name, kind
            if types.is_struct(kind):
                yield from columns(kind.fields, f"{prefix}{item.name}.")

    def is_text(kind: Any) -> bool:
        return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))

    try:
        with parquet.ParquetFile(file) as table:
            found = dict(columns(table.schema_arrow))
    except (OSError, arrow.ArrowException):
        found = {}  # which is said below
    if found and (field not in found or not is_text(found[field])):
        raise no_column(file, field, [name for name, kind in found.items() if is_text(kind)])
    yield from parquet_records(file, where, [field])


def parquet_records(file: Path, where: str, columns: list[str] | None = None) -> Iterator[tuple[str, Any]]:
    """The rows of a table; columns: those that are read, all by default."""
    arrow = pyarrow(file, where)
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as table:
            number = itertools.count(1)
            for batch in table.iter_batches(batch_size=256, columns=columns):
                yield from ((f"row {next(number)}", row) for row in batch.to_pylist())
    except (OSError, UnicodeDecodeError, arrow.ArrowException) as error:
        message = " ".join(str(error).split())
        raise UserError(f"{file} cannot be read: {message}", where, "Recreate the file.") from error


def no_column(file: Path, field: str, names: Iterable[str]) -> UserError:
    """The error for a table without a text column of that name."""
    known = ", ".join(map(repr, [*names][:20])) or "none"
    return UserError(f"{file} has no column of text {field!r}; its own: {known}", "text_field", "Set text_field.")


def lines(pieces: Iterable[str]) -> Iterator[str]:
    """The lines of a text that comes in pieces, each with its line feed."""
    parts: list[str] = []
    for piece in pieces:
        first, *others = piece.split("\n")
        parts.append(first)
        for other in others:
            yield "".join(parts) + "\n"
            parts = [other]
    if rest := "".join(parts):
        yield rest


def check_plain(file: Path, head: str, field: str) -> None:
    """Raise UserError for what is plain text by its name, other than .txt, and begins as rows with that field do."""
    if plain_name(file).suffix.lower() == ".txt":
        return
    first = head[:4096].lstrip().split("\n", 1)[0]
    rows = re.match(rf'\s*(\[\s*)?\{{.*?"{re.escape(field)}"\s*:', head[:4096], re.DOTALL)
    if not rows and csv_separator(first, field) is None:
        return
    what = f"{file} looks like {'JSON' if rows else 'CSV'} with a text under {field!r}"
    ending = (".json" if rows[1] else ".jsonl") if rows else ".csv"
    raise UserError(what, "path", f"Rename it to {ending}, or to .txt if it is to be read as it stands.")

"""Tables of images as spreadsheets, scripts and people write them: CSV, TSV, JSON and JSONL."""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from handful.data.folders import is_leftover
from handful.data.part_names import part_of
from handful.data.places import Places
from handful.errors import DataError
from handful.files import read_file

JSON_ENDINGS = {".json", ".jsonl", ".ndjson"}
ENDINGS = {".csv", ".tsv", ".tab", ".txt", ".psv", *JSON_ENDINGS}
"""How the names of tables end."""
SEPARATORS = ",;\t|"
COLUMNS = {
    "path": "file filename file_name filepath file_path image image_path imagepath image_file image_filename "
    "image_name img img_path imgpath img_name paths files filenames images",
    "label": "class classname class_name category category_name label_name labels classes categories",
    "split": "part subset partition",
}
"""What a column may be called where none has its own name; in any capitals, spaces as underscores."""
NO_TABLES = {
    b"PK\x03\x04": "an Excel workbook, or another zip. In Excel, save it as `CSV UTF-8`",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook. In Excel, save it as `CSV UTF-8`",
    b"PAR1": "Parquet. Write it as CSV, as with pandas' `to_csv(..., index=False)`",
    b"\x1f\x8b": "compressed. Unpack it",
    b"\xff\xd8\xff": "an image. Give a folder of class folders, or a table of images",
    b"\x89PNG": "an image. Give a folder of class folders, or a table of images",
}
"""First bytes of files that are taken for tables."""
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
"""Byte order marks, with what each encodes; that of UTF-32 begins as UTF-16's does."""
QUOTES = {"'": "'", '"': '"', "“": "”", "‘": "’", "«": "»"}
Row = tuple[int, dict[str, object]]


@dataclass
class Table:
    """What a table lists.

    Attributes
    ----------
    rows
        The path and the other texts of each row that is used.
    missing
        By number among `rows`, why there is no such file, and where it was looked for.
    leftovers
        Paths to what systems and archives leave behind.
    notes
        What is not read of it.
    """

    rows: list[tuple[Any, ...]] = field(default_factory=list)
    missing: dict[int, str] = field(default_factory=dict)
    leftovers: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def is_table(path: Path) -> bool:
    """Whether a path is to be read as a table, and not as a folder: a file, or nothing that is called so."""
    there = os.path.isfile(path) or os.path.isdir(path)  # noqa: PTH112, PTH113  pathlib raises for long names
    return os.path.isfile(path) if there else path.suffix.lower() in ENDINGS  # noqa: PTH113


def read_table(table: Path, columns: Sequence[str] = ("path", "label")) -> Table:
    """Read a table's rows of path, label and other texts.

    Parameters
    ----------
    table
        CSV with a header, where `,`, `;`, tab or `|` separates cells, a line `sep=;` may come first, and
        cells may be quoted; JSONL, an object each line; or JSON, a list of objects. In UTF-8, or UTF-16 with
        its mark. `Places` says which paths are found.
    columns
        What to read: keys of `COLUMNS`. A column of this name is taken, or the one column that has one of the
        other names of it.

    Raises
    ------
    DataError
        It is no table, lacks a column or has two for one, has no rows, or a row lacks a cell.
    """
    text, places, found = _decode(table), Places(table), Table()
    keys_of: dict[tuple[str, ...], list[str]] = {}
    unread: Counter[str] = Counter()
    for number, row in _json_rows(table, text) if _is_json(table, text) else _text_rows(table, text, columns):
        names = tuple(row)
        keys = keys_of[names] = keys_of.get(names) or _keys(table, names, columns, number)
        cells = [_text(row.get(key)) for key in keys]
        if not all(cells):
            raise DataError(
                f"{table}, row {number}: expected the columns {' and '.join(columns)}, all texts, got {row}."
            )
        path, *others = cells
        if any(is_leftover(part) for part in path.replace("\\", "/").split("/")):
            found.leftovers.append(path)
            continue
        place, reason = places.find(path)
        if reason:
            found.missing[len(found.rows)] = f"{reason} (row {number})"
        found.rows.append((place, *others))
        unread.update({part_of(str(row[key])) for key in _splits(names)} - {""})
    if not found.rows and not found.leftovers:
        raise DataError(f"{table} has no rows. Write a header `path,label` and a line for each image.")
    found.notes = _notes(columns, list(keys_of.values()), {} if "split" in columns else unread)
    return found


def _notes(columns: Sequence[str], keys: Sequence[list[str]], parts: Mapping[str, int]) -> list[str]:
    """Say which columns were taken for others, and that rows of several parts are read as one."""
    notes = []
    other = next((own for own in keys if [_name(key) for key in own] != list(columns)), None)
    if other:
        notes.append(f"{' and '.join(columns)} are read from the columns {' and '.join(other)}.")
    if len(parts) > 1:
        shown = ", ".join(f"{part} {count}" for part, count in sorted(parts.items()))
        notes.append(
            f"the rows are of several parts ({shown}); all are used. Give a table of one part alone."
        )
    return notes


def _decode(table: Path) -> str:
    try:
        data = read_file(table)
    except OSError as error:
        raise DataError(f"Got table={str(table)!r}, expected a readable file: {error}") from error
    for start, what in NO_TABLES.items():
        if data.startswith(start):
            raise DataError(f"Got table={str(table)!r}, which is {what}.")
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and len(data) % 2 == 0:  # UTF-16 without a mark: each letter of a header has a 0
        zeros = data[0:4:2].count(0), data[1:4:2].count(0)
        encoding = "utf-16-be" if zeros == (2, 0) else "utf-16-le" if zeros == (0, 2) else encoding
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            f"Got table={str(table)!r}, expected a readable UTF-8 file: {error}. In Excel, save it as `CSV "
            "UTF-8`."
        ) from error


def _is_json(table: Path, text: str) -> bool:
    return table.suffix.lower() in JSON_ENDINGS or text.lstrip()[:1] in ("{", "[")


def _text_rows(table: Path, text: str, columns: Sequence[str]) -> Iterator[Row]:
    """Read rows of separated cells, each with its line's number."""
    lines = re.split(r"\r\n|\r|\n", text)
    first = next((number for number, line in enumerate(lines) if line.strip()), 0)
    separators = SEPARATORS
    if lines[first].casefold().replace('"', "").startswith("sep="):  # Excel's
        separators = lines[first].replace('"', "")[4:5] or ","
        first = next((number for number, line in enumerate(lines) if number > first and line.strip()), 0)

    def columns_with(separator: str) -> tuple[int, int]:
        cells = _cells(table, lines[first], separator)
        names = cells[0][1] if cells else []
        return sum(len(_pick(names, column)) == 1 for column in columns), len(names)

    separator = max(separators, key=columns_with)
    (_, names), *rows = _cells(table, "\n".join(lines[first:]), separator) or [(1, list[str]())]
    if names:
        _keys(table, tuple(names), columns, first + 1)
    for number, cells in rows:
        if not any(cell.strip() for cell in cells):
            continue
        if any(cell.strip() for cell in cells[len(names) :]):
            raise DataError(
                f"{table}, row {number + first}: got {len(cells)} cells, the header has {len(names)}. Put "
                f"a cell that holds {separator!r} into double quotes."
            )
        yield number + first, dict(zip(names, cells + [""] * len(names), strict=False))


def _cells(table: Path, text: str, separator: str) -> list[tuple[int, list[str]]]:
    """Split text into cells, strictly if it allows that: a quote that never ends would hide rows."""
    quote = "'" if text.lstrip().startswith("'") else '"'
    given: dict[str, Any] = {"delimiter": separator, "quotechar": quote, "skipinitialspace": True}
    for strict in (True, False):
        try:
            reader = csv.reader(io.StringIO(text, newline=""), strict=strict, **given)
            found = [(reader.line_num, row) for row in reader if row]
        except csv.Error as error:
            if not strict:
                raise DataError(f"{table} is not CSV: {error}.") from error
            failed = error
            continue
        if not strict and any("\n" in cell for _, row in found for cell in row):
            raise DataError(f"{table} is not CSV: {failed}.")
        return found
    return []


def _json_rows(table: Path, text: str) -> Iterator[Row]:
    """Read a list of objects, or an object each line, with its number."""
    try:
        whole = json.loads(text)
    except RecursionError as error:
        raise DataError(f"{table}: not JSON ({error}).") from error
    except json.JSONDecodeError as error:
        if text.lstrip()[:1] == "[":
            raise DataError(f"{table}: not JSON ({error}).") from error
        whole = None
    if isinstance(whole, dict) and not isinstance(next(iter(whole.values()), ""), list | dict):
        whole = [whole]  # a table of one line
    if whole is not None and not isinstance(whole, list):
        raise DataError(
            f"{table}: got a JSON {type(whole).__name__}, expected a list of objects, one for each image (in "
            'pandas, `to_json(orient="records")`), or an object each line.'
        )
    rows = enumerate(whole, 1) if whole is not None else _json_lines(table, text)
    for number, row in rows:
        if not isinstance(row, dict):
            raise DataError(f"{table}, line {number}: expected an object, got {str(row)[:40]!r}.")
        yield number, row


def _json_lines(table: Path, text: str) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise DataError(
                    f"{table}, line {number}: not JSON ({error}). Expected an object each line, or a list "
                    "of objects."
                ) from error


def _text(value: object) -> str:
    """Give a cell's text without the space and the quotes around it; a whole number in JSON is one too."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    text = value.strip().strip("\ufeff") if isinstance(value, str) else ""
    return text[1:-1].strip() if len(text) > 1 and QUOTES.get(text[0]) == text[-1] else text


def _name(header: str) -> str:
    """Write a column's name as `COLUMNS` does."""
    return "_".join(_text(header).casefold().replace("_", " ").replace("-", " ").replace(".", " ").split())


def _pick(names: Sequence[str], column: str) -> list[str]:
    """Find the names that stand for a column: its own, or else all others of it."""
    own = [name for name in names if _name(name) == column]
    return own or [name for name in names if _name(name) in COLUMNS[column].split()]


@lru_cache(maxsize=64)
def _splits(names: tuple[str, ...]) -> list[str]:
    return _pick(names, "split")


def _keys(table: Path, names: tuple[str, ...], columns: Sequence[str], number: int) -> list[str]:
    """Find the names of columns in a row, or say what is there."""
    found = []
    for column in columns:
        keys = _pick(names, column)
        if len(keys) != 1:
            several = f"{len(keys)} columns for {column}, {keys}: call one `{column}`"
            others = ", ".join(COLUMNS[column].split()[:6])
            raise DataError(
                f"{table}, row {number}: expected the columns {' and '.join(columns)}, all texts, got "
                + (several if keys else f"{list(names)}, and none is called {column} ({others}, ...)")
                + ". A header in the first line names the columns; `,`, `;`, tab or `|` separates them."
            )
        found += keys
    return found

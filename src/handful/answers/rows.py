"""A row of answers as JSON, as columns, and as lines of a file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from handful.errors import DataError

Row: TypeAlias = dict[str, Any]
"""`image`, and `predictions`, a list of `class` and `probability`, best first, with `unknown` and `set`, the
classes that it may be of, where these were asked for; or `error`, why the image can't be read."""


def flatten(row: Row) -> dict[str, Any]:
    """Give a row as columns: `class` and `probability`, of the next best class `class_2`, and so on."""
    flat: dict[str, Any] = {name: row[name] for name in ("image", "unknown", "set", "error") if name in row}
    for number, found in enumerate(row.get("predictions", []), 1):
        end = f"_{number}" if number > 1 else ""
        flat |= {f"class{end}": found["class"], f"probability{end}": found["probability"]}
    return {name: shown(value) if isinstance(value, str) else value for name, value in flat.items()}


def shown(text: str) -> str:
    """Write out a file name of any bytes as Unicode, with escapes for what is none."""
    return text.encode(errors="backslashreplace").decode()


def columns_of(top: int, unknown: bool, sets: bool = False) -> list[str]:
    """Name the columns of rows that have some classes, whether an image is unknown, and its set."""
    blank: Row = {"image": "", "predictions": [{"class": "", "probability": 0.0}] * top}
    return [
        "image",
        *[c for c in flatten(blank) if c != "image"],
        *["unknown"] * unknown,
        *["set"] * sets,
        "error",
    ]


def csv_line(values: Iterable[object]) -> str:
    """Write a line of CSV; a list in it as JSON."""
    line = io.StringIO()
    cells = (json.dumps(one, ensure_ascii=False) if isinstance(one, list) else one for one in values)
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def json_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Give each whole row, and where it ends."""
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            end += len(line)
            try:
                yield end, dict(json.loads(line))
            except (ValueError, TypeError) as error:
                raise DataError(f"{path}, line {number}: damaged, not a row of answers ({error}).") from error


def csv_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Give each whole row, the header among them, and where it ends; a name may hold a line break."""
    end = 0

    def lines() -> Iterator[str]:
        nonlocal end
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    return
                end += len(line)
                yield line.decode()

    reader, header = csv.reader(lines(), strict=True), list[str]()
    try:
        for values in reader:
            header = header or values
            yield end, dict(zip(header, values, strict=True))
    except (csv.Error, ValueError) as error:
        if "unexpected end of data" not in str(error):
            raise DataError(
                f"{path}, line {reader.line_num}: damaged, not a row of answers ({error})."
            ) from error

"""Rows of answers as Parquet, with pyarrow where it is installed."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from handful.answers.rows import Row, flatten, json_rows
from handful.errors import HandfulError

AT_ONCE = 2_000
"""Rows that are turned into Parquet together."""


def pyarrow() -> Any:
    """Import pyarrow, and its part for Parquet."""
    try:
        importlib.import_module("pyarrow.parquet")
        return importlib.import_module("pyarrow")
    except ImportError as error:
        raise HandfulError(
            'Parquet needs pyarrow, which is not installed. Install it: pip install "handful[parquet]". Or '
            "write .csv or .jsonl."
        ) from error


def write_parquet(lines: Path, path: Path, columns: list[str]) -> None:
    """Turn rows into Parquet, in place of what is there, with no more than some rows in memory."""
    arrow = pyarrow()
    kinds = {
        "probability": arrow.float64(), "unknown": arrow.bool_(), "set": arrow.list_(arrow.string()),
    }  # fmt: skip
    schema = arrow.schema([(name, kinds.get(name.partition("_")[0], arrow.string())) for name in columns])
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with arrow.parquet.ParquetWriter(temporary, schema) as writer:
            for some in _batches(row for _, row in json_rows(lines)):
                writer.write_table(arrow.Table.from_pylist([flatten(row) for row in some], schema))
        temporary.replace(path)
    except OSError as error:
        raise HandfulError(
            f"Can't write {path}: {error}. The rows are kept in {lines}: make room, and go on with --resume."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def read_parquet(path: Path, lines: Path) -> None:
    """Write the rows of a finished file out again, to go on with more images."""
    with lines.open("w", encoding="utf-8") as file:
        for batch in pyarrow().parquet.ParquetFile(path).iter_batches(AT_ONCE):
            file.writelines(
                json.dumps(_unflatten(flat), ensure_ascii=False) + "\n" for flat in batch.to_pylist()
            )


def _unflatten(flat: dict[str, Any]) -> Row:
    kept = {name: flat[name] for name in ("image", "unknown", "set", "error") if flat.get(name) is not None}
    names = [name for name in flat if name.startswith("class") and flat[name] is not None]
    found = [
        {"class": flat[name], "probability": flat[name.replace("class", "probability")]} for name in names
    ]
    return kept | ({"predictions": found} if found else {})


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    some: list[Row] = []
    for row in rows:
        some.append(row)
        if len(some) == AT_ONCE:
            yield some
            some = []
    if some:
        yield some

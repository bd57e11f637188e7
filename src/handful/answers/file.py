"""A file of answers that grows row by row, and that a later run goes on with."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from handful.answers.parquet import pyarrow, read_parquet, write_parquet
from handful.answers.rows import Row, columns_of, csv_line, csv_rows, flatten, json_rows, shown
from handful.errors import DataError, HandfulError, ParameterError, unexpected
from handful.files import write_atomically

FORMATS = (".csv", ".jsonl", ".parquet")


class AnswerFile:
    """Rows in a file, written as they come: `.csv`, `.jsonl`, or `.parquet`, which is made at the end.

    Beside it lies `FILE.run.json`, which says what was asked of which classifier, and whether all of it was
    answered. What a run has written stays whatever stops it; a half-written last row is dropped.

    It is written inside a `with`.

    Parameters
    ----------
    path
        The file.
    asked
        What the answers depend on but for the images, as JSON knows it: a run goes on only with the same.
    top, unknown, sets
        How many classes a row has, and whether it says that an image is unknown, and which classes it may be.
    resume
        Go on with what is there.

    Attributes
    ----------
    done
        The images that a run before has answered.
    count, errors
        Images that have a row, and how many of these could not be read.
    replaces
        Whether there were answers of a finished run, which this one replaces.

    Raises
    ------
    ParameterError
        The file is of another form, holds something else, or was written by another classifier.
    """

    def __init__(
        self,
        path: Path,
        asked: Mapping[str, Any],
        top: int,
        unknown: bool,
        resume: bool = False,
        sets: bool = False,
    ) -> None:
        form = path.suffix.lower()
        if form not in FORMATS:
            raise unexpected("--out", str(path), f"a file that ends in {', '.join(FORMATS)}")
        if form == ".parquet":
            pyarrow()
        self.path, self.is_csv, self.is_parquet = path, form == ".csv", form == ".parquet"
        self.columns = columns_of(top, unknown, sets)
        self.lines = path.with_name(f"{path.name}.rows.jsonl") if self.is_parquet else path
        """Where rows are written as they come."""
        self.done: set[str] = set()
        self.count = self.errors = 0
        self._asked, self._run = dict(asked), path.with_name(f"{path.name}.run.json")
        self.resume, self.replaces = resume, self._look(resume)

    def __enter__(self) -> Self:
        """Begin to write."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self.resume:
                for old in {self.path, self.lines}:
                    old.unlink(missing_ok=True)
            self._note(finished=False)
            self._file = self.lines.open("ab", buffering=0)
            if self.is_csv and not self._file.tell():
                self._put(csv_line(self.columns))
        except OSError as error:
            why = error.strerror or error
            raise unexpected("--out", str(self.path), f"a file that can be written ({why})") from error
        return self

    def __exit__(self, *_: object) -> None:
        """End where it is; a later run may go on."""
        self._file.close()

    def write(self, rows: Iterable[Row]) -> None:
        """Add rows, and hand them to the system at once."""
        lines = []
        for row in rows:
            self._count(row)
            lines.append(self._line(row))
        try:
            self._put("".join(lines))
        except OSError as error:
            raise HandfulError(
                f"Can't write to {self.lines}: {error.strerror or error}. The rows before are kept: make "
                "room, and go on with --resume."
            ) from error

    def finish(self) -> None:
        """Say that all images are answered; of Parquet, make the file."""
        if self.is_parquet:
            write_parquet(self.lines, self.path, self.columns)
        self._note(finished=True)
        if self.is_parquet:
            self.lines.unlink()

    def _line(self, row: Row) -> str:
        if not self.is_csv:
            return json.dumps(row, ensure_ascii=False) + "\n"
        flat = flatten(row)
        return csv_line(flat.get(column, "") for column in self.columns)

    def _put(self, text: str) -> None:
        data = memoryview(text.encode(errors="backslashreplace"))  # a file name need not be Unicode
        while data:
            data = data[self._file.write(data) :]

    def _count(self, row: Row) -> None:
        self.count += 1
        self.errors += bool(row.get("error"))

    def _note(self, finished: bool) -> None:
        text = json.dumps({"handful": "predict --out", "finished": finished, "asked": self._asked}, indent=1)
        write_atomically(self._run, text.encode())

    def _look(self, resume: bool) -> bool:
        """Look at what is there: take it up, or refuse; say whether it is to be replaced."""
        there = [path for path in {self.path, self.lines} if path.exists() and path.stat().st_size]
        before = self._before()
        if there and before is None:
            raise unexpected(
                "--out", str(self.path), "a new file: this one was not written by `handful predict --out`, "
                f"or {self._run.name} is missing", "It is left as it is: choose another name.",
            )  # fmt: skip
        if not there or before is None:
            return False
        if resume:
            other = [
                name for name, value in self._asked.items() if before.get("asked", {}).get(name) != value
            ]
            if other:
                raise ParameterError(
                    f"Got --resume, but {self.path} was written with another {' and '.join(other)}. Go on "
                    "with the same, or write to another file."
                )
            self._take_up()
        elif not before.get("finished"):
            raise unexpected(
                "--out", str(self.path), "a new file: this one holds answers of a run that was stopped",
                "--resume goes on with it; to start again remove it.",
            )  # fmt: skip
        return not resume

    def _before(self) -> dict[str, Any] | None:
        """Read what the run before was asked."""
        try:
            found = json.loads(self._run.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and isinstance(found.get("asked"), dict) else None

    def _take_up(self) -> None:
        """Read what is done, and cut off a row that is half written."""
        if self.is_parquet and not self.lines.exists():
            read_parquet(self.path, self.lines)
        end = 0
        for stop, row in (csv_rows if self.is_csv else json_rows)(self.lines):
            end = stop
            if self.is_csv and row == dict(zip(self.columns, self.columns, strict=True)):
                continue
            if "image" not in row or (self.is_csv and list(row) != self.columns):
                raise DataError(
                    f"{self.lines} is damaged: expected the columns {self.columns}, got {row!r:.200}."
                )
            self._count(row)
            self.done.add(shown(row["image"]))
        os.truncate(self.lines, end)

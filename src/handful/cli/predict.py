"""The command that classifies images of any number: predict."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from handful.cli.common import (
    AsJson,
    Megapixels,
    Model,
    OwnBackbone,
    OwnMethod,
    Weights,
    as_json_text,
    check_file,
    echo,
    echo_json,
    list_files,
    load_classifier,
    say,
)
from handful.errors import counted

if TYPE_CHECKING:
    from handful.answers import AnswerFile, Row
    from handful.data.looks import Look
    from handful.estimator import FewShotClassifier
    from handful.estimator.conformal import SetRule

SHOWN = 12
"""Images that can't be read which stderr names, where a file has them all."""


def predict(
    model: Model,
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them, of any number.")],
    top: Annotated[int, typer.Option(min=1, help="How many classes to print for each image.")] = 1,
    unknown: Annotated[
        str, typer.Option(help="Call images unknown: auto, as calibrated, or below a probability, as 0.5.")
    ] = "",
    coverage: Annotated[
        float | None,
        typer.Option(
            help="Say which classes an image may be of, so that its own is among them at this rate."
        ),
    ] = None,
    by: Annotated[
        str, typer.Option(help="Whether that rate holds over all images or in every class: all, class, auto.")
    ] = "all",
    empty: Annotated[
        str, typer.Option(help="What to say where no class is likely: none, or best, the nearest one.")
    ] = "none",
    out: Annotated[
        Path | None, typer.Option(help="Write answers as they come to a .csv, .jsonl or .parquet.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with --out FILE, where an earlier run was stopped.")
    ] = False,
    method: OwnMethod = None,
    backbone: OwnBackbone = None,
    weights: Weights = None,
    megapixels: Megapixels = None,
    as_json: AsJson = False,
) -> None:
    """Say what is on images; answers come as they are made, and Ctrl-C keeps them."""
    from handful.answers import answer_rows
    from handful.data.looks import notes_on
    from handful.estimator.confidence import check_unknown
    from handful.methods import read_value
    from handful.progress import bar

    if resume and out is None:
        raise typer.BadParameter("--resume goes on with a file: give --out FILE beside it")
    if coverage is None and (by, empty) != ("all", "none"):
        raise typer.BadParameter("--by and --empty are of sets: give --coverage 0.9 beside them")
    if out is not None:
        check_file(out)
    clf = load_classifier(model, method, backbone, weights)
    least = read_value(unknown) if unknown else None
    check_unknown(clf.calibration_, least)
    rule = None if coverage is None else clf.set_rule(coverage, by, empty)  # type: ignore[arg-type]
    sink: Sink = _Json() if as_json and out is None else Sink(coverage)
    if out is not None:
        sink = _File(_open(out, resume, clf, min(top, len(clf.classes_)), least, rule), as_json)
    left = [file for file in _files(images) if not sink.has(file)]
    looks: dict[int, Look] = {}
    show = False if out is None and sys.stdout.isatty() else None  # answers on a terminal show how far it is
    try:
        with sink, bar("Predicting", len(left), show) as advance:
            for rows in answer_rows(clf, left, top, least, looks, rule):
                sink.write(rows)
                advance(len(rows))
            sink.finish()
    except KeyboardInterrupt:
        done = f"{counted(sink.count)} {'is' if sink.count == 1 else 'are'} answered"
        say(f"interrupted: {done}. {sink.next_step}")
        raise typer.Exit(130) from None
    for note in notes_on(left, looks):
        say(f"note: {note}")
    if sink.errors:
        raise typer.Exit(1)


class Sink:
    """Where answers go, here as lines on stdout; what can't be read is said on stderr.

    Attributes
    ----------
    count, errors
        Images that have been answered, and how many of these could not be read.
    next_step
        What to do about one that was interrupted.
    """

    next_step = "--out FILE keeps answers in a file, and --resume goes on with it."

    def __init__(self, coverage: float | None = None) -> None:
        self.count = self.errors = 0
        self._coverage = coverage

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """End, however it ends."""

    def has(self, file: str) -> bool:
        """Whether an image is answered already."""
        return False

    def write(self, rows: list[Row]) -> None:
        """Take some answers, in the order of the images."""
        for row in rows:
            self.count += 1
            if reason := row.get("error"):
                self.errors += 1
                self.refuse(f"{row['image']}: {reason}")
            else:
                self.answer(row)

    def answer(self, row: Row) -> None:
        """Take an answer."""
        shown = ", ".join(f"{a['class']} {100 * a['probability']:.1f} %" for a in row["predictions"])
        sets = ""
        if self._coverage is not None:
            sets = (
                f"; set at {100 * self._coverage:g} %: {', '.join(row['set']) or 'none of these is likely'}"
            )
        echo(f"{row['image']}: {'unknown, nearest ' if row.get('unknown') else ''}{shown}{sets}")

    def refuse(self, line: str) -> None:
        """Take an image that can't be read."""
        say(f"error: {line}")

    def finish(self) -> None:
        """Say that this was all."""


class _Json(Sink):
    """One JSON object on stdout, written piece by piece, whole whatever stops it."""

    def __enter__(self) -> Self:
        self._bad: list[str] = []
        echo('{"results": [', end="")
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        stopped = ', "interrupted": true' if error else ""
        echo(f'], "errors": {as_json_text(self._bad)}{stopped}}}')

    def answer(self, row: Row) -> None:
        comma = ", " if self.count - self.errors > 1 else ""
        echo(comma + as_json_text(row), end="")

    def refuse(self, line: str) -> None:
        self._bad.append(line)
        super().refuse(line)


class _File(Sink):
    """A file that a later run can go on with; a line about it on stdout at the end."""

    def __init__(self, file: AnswerFile, as_json: bool) -> None:
        self.count, self.errors = file.count, file.errors
        self._file, self._as_json, self._named = file, as_json, 0
        self.next_step = f"{file.lines} holds them; the same command with --resume goes on."

    def __enter__(self) -> Self:
        self._file.__enter__()
        return self

    def __exit__(self, error: type[BaseException] | None, *rest: object) -> None:
        self._file.__exit__(error, *rest)

    def has(self, file: str) -> bool:
        from handful.answers import shown

        return shown(file) in self._file.done

    def write(self, rows: list[Row]) -> None:
        self._file.write(rows)
        super().write(rows)

    def answer(self, row: Row) -> None:
        """It is in the file."""

    def refuse(self, line: str) -> None:
        self._named += 1
        if self._named <= SHOWN:
            super().refuse(line)

    def finish(self) -> None:
        self._file.finish()
        if self._named > SHOWN:
            say(
                f"and {counted(self._named - SHOWN, 'more image')} that can't be read: {self._file.path} has "
                "the reasons"
            )
        if self._as_json:
            echo_json({"out": str(self._file.path), "images": self.count, "errors": self.errors})
            return
        bad = f", {self.errors} can't be read" * bool(self.errors)
        echo(f"{self._file.path}: {counted(self.count)}{bad}")


def _open(
    out: Path, resume: bool, clf: FewShotClassifier, top: int, unknown: Any, rule: SetRule | None
) -> AnswerFile:
    """Open the file of answers, and say what is there already."""
    from handful.answers import AnswerFile, identity
    from handful.data.limits import most_pixels

    most = most_pixels() / 1e6
    asked = {"classifier": identity(clf), "--top": top, "--unknown": unknown, "--megapixels": most}
    asked |= {"--coverage": rule and [rule.coverage, rule.by, rule.empty]}
    file = AnswerFile(out, asked, top, unknown is not None, resume, rule is not None)
    if file.replaces:
        say(f"note: {out} holds the answers of an earlier run, which are replaced")
    if file.done:
        say(f"{out}: {file.count} images are answered already")
    return file


def _files(paths: list[Path]) -> list[str]:
    """Give the files, and the images in the folders."""
    return [str(file) for file in list_files(paths)]  # a path takes several times the memory of its text

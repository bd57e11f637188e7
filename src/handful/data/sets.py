"""Labelled images from folders, tables and lists: what went in and what came out is counted."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np

from handful.data.images import check_images
from handful.data.reading import LeftOut, Report, find_same, refuse
from handful.errors import DataError, UnreadableImages, unexpected
from handful.files import readable_name
from handful.types import ImageLike

SYSTEM_FILES = {"thumbs.db", "desktop.ini"}
PARTS = {"train", "training", "val", "valid", "validation", "test", "testing"}
"""What folders are called that hold class folders, and are none."""
LONGEST_NAME = 1000
"""Characters of a class name; a text tower reads far fewer."""

OnError = Literal["raise", "skip"]
T = TypeVar("T")
Rows: TypeAlias = Sequence[int] | Sequence[bool] | slice | np.ndarray[Any, Any]


@dataclass(frozen=True)
class ImageSet:
    """Images with labels.

    Attributes
    ----------
    items
        Paths, PIL images or byte arrays, one for each image.
    labels
        `[N]` integers, rows of `class_names`.
    class_names
        The names of the classes in label order, underscores already spaces.
    report
        What was found and left out when the set was read.
    """

    items: tuple[ImageLike, ...]
    labels: np.ndarray[Any, Any]
    class_names: tuple[str, ...]
    report: Report | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        labels = np.asarray(self.labels)
        object.__setattr__(self, "labels", labels)
        if len(labels) and labels.dtype.kind not in "iu":
            raise DataError(f"Got labels of dtype {labels.dtype}, expected integers, rows of class_names.")
        if labels.shape != (len(self.items),):
            raise DataError(
                f"Got {len(self.items)} images and labels of shape {labels.shape}, "
                "expected one label for each image."
            )
        if len(labels) and not (labels.min() >= 0 and labels.max() < len(self.class_names)):
            raise DataError(
                f"Got labels from {labels.min()} to {labels.max()} for "
                f"{len(self.class_names)} class names, expected rows of class_names."
            )

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, rows: Rows) -> ImageSet:
        """Choose rows, keeping all class names: `images[[3, 1, 4]]`, a slice, or a mask."""
        chosen = choose_rows(rows, len(self))
        return replace(
            self,
            items=tuple(self.items[row] for row in chosen),
            labels=self.labels[chosen],
            report=None,
        )

    def of_classes(self, rows: Sequence[int]) -> ImageSet:
        """Keep the images of some classes, in this order of classes, labelled from 0."""
        chosen = choose_rows(list(rows), len(self.class_names))
        if len(set(chosen.tolist())) < len(chosen):
            raise DataError(f"Got classes {list(rows)[:8]}, expected each once.")
        place = np.full(len(self.class_names), -1)
        place[chosen] = np.arange(len(chosen))
        kept = self[place[self.labels] >= 0]
        names = tuple(self.class_names[row] for row in chosen)
        return replace(kept, labels=place[kept.labels], class_names=names)

    def without(self, failures: Mapping[int, str]) -> ImageSet:
        """Leave out images that can't be used, and say so in the report.

        Parameters
        ----------
        failures
            By row, the reason. A class that loses its last image is left out as well.

        Raises
        ------
        DataError
            No image is left.
        """
        report, alive = self._report_without(failures)
        if not report.kept:
            raise DataError(f"No image is left. {report}")
        kept = self[[row for row in range(len(self)) if row not in failures]].of_classes(alive)
        return replace(kept, report=report)

    def _report_without(self, failures: Mapping[int, str]) -> tuple[Report, list[int]]:
        """Say what is left without some images, and which classes."""
        if not all(row in range(len(self)) for row in failures):
            raise unexpected("failures", dict(failures), f"rows from 0 to {len(self) - 1}")
        gone = np.array([row in failures for row in range(len(self))])
        lost = set(self.labels[gone].tolist()) - set(self.labels[~gone].tolist())
        alive = [row for row in range(len(self.class_names)) if row not in lost]
        before = self.report or Report(len(self), len(self))
        written = before.written or self.class_names
        bad = tuple(LeftOut(str(self.items[row]), failures[row]) for row in sorted(failures))
        paths = {item.path for item in bad}
        report = replace(
            before,
            kept=before.kept - len(bad),
            left_out=before.left_out + bad,
            empty_classes=before.empty_classes + tuple(written[row] for row in sorted(lost)),
            same=tuple(pair for pair in before.same if not paths & set(pair)),
            written=tuple(written[row] for row in alive),
        )
        return report, alive

    def with_same(self) -> ImageSet:
        """Look for the same image in different classes, for the report: `report.same`.

        A file whose features were made in this process is not read again.
        """
        report = self.report or Report(len(self), len(self))
        labelled = zip(self.items, self.labels.tolist(), strict=True)
        return replace(self, report=replace(report, same=find_same(labelled)))

    @classmethod
    def from_lists(
        cls,
        images: Iterable[ImageLike],
        labels: Iterable[str] | Iterable[int],
        class_names: Sequence[str] | None = None,
    ) -> ImageSet:
        """Pair images with labels: class names, or integers with `class_names` given.

        Names are sorted, as scikit-learn sorts its classes, unless `class_names` fixes the order.
        """
        items, marks = tuple(images), list(labels)
        fixed = None if class_names is None else check_names(class_names)
        if len(items) != len(marks):
            raise DataError(f"Got {len(items)} images and {len(marks)} labels, expected as many.")
        if marks and all(isinstance(mark, str) for mark in marks):
            words = [clean_name(str(mark)) for mark in marks]
            names = fixed or check_names(sorted(set(words)))
            unknown = sorted(set(words) - set(names))
            if unknown:
                raise unexpected("labels", unknown[:5], f"names among class_names={list(names)[:8]}")
            row_of = {name: row for row, name in enumerate(names)}
            return cls(items, np.array([row_of[word] for word in words], dtype=int), names)
        if not all(isinstance(mark, Integral) and not isinstance(mark, bool) for mark in marks):
            raise DataError(f"Got labels such as {marks[:3]}, expected all texts or all integers.")
        if fixed is None:
            raise DataError(
                "Integer labels say nothing about what the classes are. Give class_names=[...] in "
                "label order, or give the labels as strings."
            )
        return cls(items, np.array(marks, dtype=int), fixed)

    @classmethod
    def from_folder(cls, folder: str | Path, on_error: OnError = "raise", verify: bool = True) -> ImageSet:
        """Read a folder with one sub-folder for each class, of any depth below that.

        Parameters
        ----------
        folder
            `folder/<class name>/.../<image>`; the sub-folder's name is the class name.
        on_error
            `"raise"`: one error that lists every bad file, before any work starts.
            `"skip"`: bad files stay out, and `report` says which.
        verify
            Decode every image once to find truncated ones.
        """
        root = Path(folder)
        if not root.is_dir():
            what = "which is a file" if root.exists() else "which is not there"
            raise DataError(f"Got folder={str(folder)!r}, {what}; expected a folder of class folders.")
        classes = sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
        if not classes:
            raise DataError(
                f"{root} holds no class folders. Lay the images out as {root}/<class name>/<image>."
            )
        if all(path.name.casefold() in PARTS and any(map(Path.is_dir, path.iterdir())) for path in classes):
            one = next((path for path in classes if path.name.casefold().startswith("train")), classes[0])
            found = ", ".join(path.name for path in classes)
            raise DataError(f"{root} holds {found}: parts of a data set, no classes. Give one, as {one}.")
        files: list[tuple[Path, str]] = []
        names: list[str] = []
        empty: list[str] = []
        loose = [path for path in root.iterdir() if not path.is_dir() and not _is_system(path)]
        bad = [LeftOut(str(path), "lies beside the class folders, in none of them") for path in loose]
        for path in classes:
            inside = [found for found in sorted(path.rglob("*")) if not found.is_dir()]
            inside = [found for found in inside if not _is_system(found)]
            (empty if not inside else names).append(path.name)
            files += [(found, path.name) for found in inside if found.is_file()]
            odd = [found for found in inside if not found.is_file()]
            bad += [LeftOut(str(found), "a link to nothing, or no file") for found in odd]
        return _assemble(files, names, on_error, verify, bad, empty)

    @classmethod
    def from_table(cls, table: str | Path, on_error: OnError = "raise", verify: bool = True) -> ImageSet:
        """Read a CSV (with a header) or JSONL file with the columns `path` and `label`.

        Paths that are not absolute start at the table's own folder.
        """
        rows = read_table(Path(table))
        names = list(dict.fromkeys(label for _, label in rows))
        return _assemble(rows, sorted(names), on_error, verify, [], [])


def choose_rows(rows: Rows, count: int) -> np.ndarray[Any, Any]:
    """Turn integers, a mask or a slice into row numbers below `count`."""
    chosen = np.arange(count)[rows] if isinstance(rows, slice) else np.asarray(rows)
    if chosen.dtype == bool and chosen.shape == (count,):
        return np.flatnonzero(chosen)
    fine = chosen.ndim == 1 and (not len(chosen) or chosen.dtype.kind in "iu")
    if not fine or (len(chosen) and not -count <= chosen.min() <= chosen.max() < count):
        raise unexpected("rows", rows, f"a list of integers below {count}, a mask of {count}, or a slice")
    return chosen.astype(int)


def check_names(names: Iterable[str]) -> tuple[str, ...]:
    """Refuse lists of class names that can't make a classifier; underscores become spaces."""
    given = None if isinstance(names, str) or not isinstance(names, Iterable) else list(names)
    if given is None or not all(isinstance(name, str) for name in given):
        raise DataError(f"Got class_names={names!r}, expected a list of texts.")
    words = tuple(clean_name(name) for name in given)
    if not words:
        raise DataError("Got no class names, expected at least one.")
    if "" in words:
        raise DataError(f"Got an empty class name at position {words.index('')}, expected a word.")
    if "�" in "".join(words) or any(not name.isprintable() for name in words):
        raise DataError("Got a class name that is not readable text (UTF-8). Rename its folder.")
    longest = max(words, key=len)
    if len(longest) > LONGEST_NAME:
        raise DataError(
            f"Got a class name of {len(longest)} characters, {longest[:60]!r}..., expected at most "
            f"{LONGEST_NAME}. Shorten it."
        )
    folded = [word.casefold() for word in words]
    count = Counter(folded)
    twice = sorted({word for word, low in zip(words, folded, strict=True) if count[low] > 1})
    if twice:
        raise DataError(f"Got duplicate class names {twice[:5]}. Rename them so that each is one class.")
    return words


def _is_system(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in SYSTEM_FILES


def clean_name(name: str) -> str:
    """Turn a folder or file name into words: underscores are spaces, as in the published prompts."""
    return " ".join(readable_name(name).replace("_", " ").split())


def _assemble(
    files: list[tuple[Path, str]],
    names: list[str],
    on_error: OnError,
    verify: bool,
    bad: list[LeftOut],
    empty: list[str],
) -> ImageSet:
    """Check files and names together, and raise once or leave out."""
    _check_on_error(on_error)
    cleaned: dict[str, list[str]] = {}
    for name in names + empty:
        cleaned.setdefault(clean_name(name).casefold(), []).append(name)
    twice = [f"{' and '.join(group)} are one class name" for group in cleaned.values() if group[1:]]
    if twice:
        raise DataError(
            "Duplicate class folders or labels: " + "; ".join(twice) + ". Merge them, or rename one."
        )
    found = len(files) + len(bad)
    reasons = check_images([path for path, _ in files])[1] if verify else {}
    bad = bad + [LeftOut(str(files[row][0]), reason) for row, reason in reasons.items()]
    kept = [file for row, file in enumerate(files) if row not in reasons]
    alive = {label for _, label in kept}
    order = [name for name in names if name in alive]
    empty = empty + [name for name in names if name not in alive]
    same = find_same(kept) if verify else ()
    report = Report(found, len(kept), tuple(bad), tuple(empty), same, tuple(order))
    if on_error == "raise" and (bad or empty):
        refuse(report)
    if not kept:
        raise DataError(f"No image is left. {report}")
    row_of = {name: row for row, name in enumerate(order)}
    return ImageSet(
        tuple(path for path, _ in kept),
        np.array([row_of[label] for _, label in kept], dtype=int),
        check_names(order),
        report,
    )


def _check_on_error(on_error: object) -> None:
    if on_error not in ("raise", "skip"):
        raise unexpected("on_error", on_error, "'raise' or 'skip'")


def use_readable(
    images: ImageSet, use: Callable[[ImageSet], T], on_error: OnError = "raise"
) -> tuple[T, ImageSet]:
    """Use images that were not verified, and let the use find those that can't be read.

    Parameters
    ----------
    images
        As `from_folder(verify=False)` reads them.
    use
        What is done with them, such as a fit: with all, or with some rows.
    on_error
        `"raise"`: one error that lists every bad file. `"skip"`: bad files stay out, and the images that
        are left are used; features that were made of them are cached by then.

    Returns
    -------
    tuple
        The answer, and the images that it was made of, with their report.

    Raises
    ------
    DataError
        Some images can't be read, or none of them can.
    """
    _check_on_error(on_error)
    while True:
        try:
            return use(images), images
        except UnreadableImages as error:
            why = {id(item): error.failures[row] for row, item in error.items.items()}
            failures = {row: why[id(item)] for row, item in enumerate(images.items) if id(item) in why}
            if not failures:
                raise  # images of another set
            if on_error == "raise":
                refuse(images._report_without(failures)[0])
            images = images.without(failures)


def read_table(table: Path, columns: Sequence[str] = ("path", "label")) -> list[tuple[Any, ...]]:
    """Read rows of path, label and other texts from CSV or JSONL; paths start from the table's folder."""
    try:
        text = table.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Got table={str(table)!r}, expected a readable UTF-8 file: {error}") from error
    rows: list[tuple[Any, ...]] = []
    for number, row in _rows(table, text):
        path, *others = texts = [row.get(column) for column in columns]
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise DataError(
                f"{table}, row {number}: expected the columns {' and '.join(columns)}, all texts, got {row}."
            )
        rows.append((table.parent / str(path), *(str(other).strip() for other in others)))
    if not rows:
        raise DataError(f"{table} has no rows. Write a header `path,label` and a line for each image.")
    return rows


def _rows(table: Path, text: str) -> list[tuple[int, dict[str, object]]]:
    if table.suffix.lower() == ".csv":
        try:
            reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
            return [(reader.line_num, dict(row)) for row in reader]
        except csv.Error as error:
            raise DataError(f"{table} is not CSV: {error}.") from error
    if table.suffix.lower() not in (".jsonl", ".ndjson"):
        raise unexpected("table", str(table), "a file that ends in .csv or .jsonl")
    found: list[tuple[int, dict[str, object]]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise DataError(f"{table}, line {number}: not JSON ({error}).") from error
            if not isinstance(row, dict):
                raise DataError(f"{table}, line {number}: expected an object, got {line[:40]!r}.")
            found.append((number, row))
    return found

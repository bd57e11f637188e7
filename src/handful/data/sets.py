"""Labelled images from folders, tables and lists: what went in and what came out is counted."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np

from handful.data.folders import Listing, list_classes
from handful.data.images import check_images
from handful.data.items import settle
from handful.data.looks import notes_on
from handful.data.names import check_names, clean_name, name_key
from handful.data.reading import LeftOut, Report, find_same, refuse
from handful.data.tables import read_table
from handful.errors import DataError, UnreadableImages, counted, unexpected
from handful.types import ImageLike

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
                f"Got {counted(len(self.items))} and labels of shape {labels.shape}, "
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
        items, marks = tuple(map(settle, images)), list(labels)
        fixed = None if class_names is None else check_names(class_names)
        if len(items) != len(marks):
            raise DataError(
                f"Got {counted(len(items))} and {counted(len(marks), 'label')}, expected as many."
            )
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

        Files are images by their name, or by their first bytes; notes and tables among them are passed over
        and named in the report, hidden files and leftovers of systems and archives are counted. Links to
        folders are followed, and each real folder is read once.

        Parameters
        ----------
        folder
            `folder/<class name>/.../<image>`; the sub-folder's name is the class name. Parts of a data set
            (`train` and `test`, `images` alone) are refused: give one of them.
        on_error
            `"raise"`: one error that lists every bad file, before any work starts.
            `"skip"`: bad files stay out, and `report` says which.
        verify
            Decode every image once to find truncated ones.
        """
        return _assemble(list_classes(Path(folder)), {}, on_error, verify)

    @classmethod
    def from_table(cls, table: str | Path, on_error: OnError = "raise", verify: bool = True) -> ImageSet:
        """Read a table with the columns `path` and `label`: CSV or TSV with a header, JSON or JSONL.

        Columns may have other usual names (`Image`, `class`), cells be separated by `,`, `;`, tab or `|`.
        Paths that are not absolute start at the table's own folder, or else at the working folder.

        Raises
        ------
        DataError
            It is no such table; or, with `on_error="raise"`, files are missing or can't be read: the error
            says what was tried.
        """
        found = read_table(Path(table))
        listing = Listing(
            labelled=found.rows, names=sorted({label for _, label in found.rows}),
            leftovers=found.leftovers, notes=found.notes,
        )  # fmt: skip
        return _assemble(listing, found.missing, on_error, verify)


def choose_rows(rows: Rows, count: int) -> np.ndarray[Any, Any]:
    """Turn integers, a mask or a slice into row numbers below `count`."""
    chosen = np.arange(count)[rows] if isinstance(rows, slice) else np.asarray(rows)
    if chosen.dtype == bool and chosen.shape == (count,):
        return np.flatnonzero(chosen)
    fine = chosen.ndim == 1 and (not len(chosen) or chosen.dtype.kind in "iu")
    if not fine or (len(chosen) and not -count <= chosen.min() <= chosen.max() < count):
        raise unexpected("rows", rows, f"a list of integers below {count}, a mask of {count}, or a slice")
    return chosen.astype(int)


def _assemble(listing: Listing, missing: Mapping[int, str], on_error: OnError, verify: bool) -> ImageSet:
    """Check files and names together, and raise once or leave out; `missing` rows are not there."""
    _check_on_error(on_error)
    _check_folders(listing.names, listing.empty)
    files = listing.labelled
    there = [row for row in range(len(files)) if row not in missing]
    items = [files[row][0] for row in there]
    checked = check_images(items) if verify else None
    unreadable = checked.failures if checked else {}
    reasons = {**missing, **{there[place]: reason for place, reason in unreadable.items()}}
    bad = [*listing.bad, *listing.passed]
    bad += [LeftOut(str(files[row][0]), reasons[row]) for row in sorted(reasons)]
    kept = [file for row, file in enumerate(files) if row not in reasons]
    alive = {label for _, label in kept}
    order = [name for name in listing.names if name in alive]
    empty = listing.empty + [name for name in listing.names if name not in alive]
    report = Report(
        found=len(kept) + len(bad),
        kept=len(kept),
        left_out=tuple(bad),
        empty_classes=tuple(empty),
        same=find_same(kept) if verify else (),
        written=tuple(order),
        passed_over=tuple(listing.leftovers),
        notes=(*listing.notes, *(notes_on(items, checked.looks) if checked else ())),
    )
    if on_error == "raise" and (listing.bad or reasons or empty):
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


def _check_folders(names: Sequence[str], empty: Sequence[str]) -> None:
    """Refuse names that make no classes before any image is read."""
    same: dict[str, list[str]] = {}
    for name in [*names, *empty]:
        same.setdefault(name_key(name), []).append(name)
    twice = [
        f"{' and '.join(group)} are one class name"
        + ", encoded in two ways" * (len({unicodedata.normalize("NFC", name) for name in group}) == 1)
        for group in same.values()
        if group[1:]
    ]
    if twice:
        raise DataError(
            "Duplicate class folders or labels: " + "; ".join(twice) + ". Merge them, or rename one."
        )
    if names:
        check_names(names)


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

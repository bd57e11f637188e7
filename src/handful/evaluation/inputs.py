"""Labelled images as they are given, and those of them whose class a classifier knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from handful.data import ImageSet
from handful.data.given import as_items
from handful.data.items import is_file
from handful.errors import DataError, unexpected
from handful.estimator import FewShotClassifier
from handful.estimator.inputs import is_encoded
from handful.estimator.labels import read_marks
from handful.types import ImageLike, Labels

OtherClasses = Literal["raise", "skip", "unknown"]


@dataclass(frozen=True)
class Known:
    """Images of classes that a classifier knows.

    Attributes
    ----------
    items, names
        N images, and what each is called: its path, or its number among all that were given.
    truth
        `[N]`, rows of the classifier's classes.
    others
        Images of classes that it does not know, by class.
    """

    items: tuple[ImageLike, ...]
    names: tuple[str, ...]
    truth: NDArray[np.int64]
    others: dict[str, tuple[ImageLike, ...]]


def read_known(
    clf: FewShotClassifier, images: Any, labels: Labels | None, other_classes: OtherClasses
) -> Known:
    """Read labelled images; see `handful.evaluation.evaluate`."""
    if other_classes not in ("raise", "skip", "unknown"):
        raise unexpected("other_classes", other_classes, "'raise', 'skip' or 'unknown'")
    given = images if isinstance(images, ImageSet) else _labelled(clf, images, labels)
    if not len(given):
        raise DataError("Got no images, expected at least one of each class.")
    present, place = np.unique(given.labels, return_inverse=True)  # a set may name classes without images
    found = [given.class_names[row] for row in present]
    row_of = _match(clf, found)
    unknown = [name for name, row in zip(found, row_of, strict=True) if row < 0]
    if len(unknown) == len(found):
        raise _refusal(clf, unknown, "It knows none of these: look whether this is the right folder.")
    if unknown and other_classes == "raise":
        raise _refusal(
            clf, unknown,
            "Leave their images out with other_classes='skip' (--on-error skip), or measure with them how "
            "well images of no class are known: other_classes='unknown', unknown='auto' (--on-error skip "
            "--unknown auto). Or add these classes to the classifier.",
        )  # fmt: skip
    truth = np.array(row_of, dtype=np.int64)[place]
    kept = np.flatnonzero(truth >= 0)
    others = {
        name: tuple(given.items[row] for row in np.flatnonzero(place == found.index(name)))
        for name in unknown
    }
    items = tuple(given.items[row] for row in kept)
    names = tuple(
        str(item) if is_file(item) else f"image {row}" for row, item in zip(kept, items, strict=True)
    )
    return Known(items, names, truth[kept], others)


def _labelled(clf: FewShotClassifier, images: Any, labels: Labels | None) -> ImageSet:
    """Pair images with their labels: names, or the integers that `fit` takes."""
    if is_encoded(images):
        raise DataError("Got features, expected images: what a classifier has seen is known by its images.")
    items = tuple(as_items(images))
    if not items:
        raise DataError("Got no images, expected at least one of each class.")
    marks = read_marks(labels)
    if marks.dtype.kind == "U":
        return ImageSet.from_lists(items, marks.tolist())
    return ImageSet(items, clf.fitted_.known.rows(marks), clf.class_names_)


def _match(clf: FewShotClassifier, names: Sequence[str]) -> list[int]:
    """Find the row of each name among the fitted classes; -1 for one that is not among them."""
    try:
        return clf.match(names).tolist()
    except DataError:
        return [_row(clf, name) for name in names]


def _row(clf: FewShotClassifier, name: str) -> int:
    try:
        return int(clf.match([name])[0])
    except DataError:
        return -1


def _refusal(clf: FewShotClassifier, unknown: Sequence[str], advice: str) -> DataError:
    known = clf.class_names_
    return DataError(
        f"Got {len(unknown)} class{'es' * (len(unknown) != 1)} that this classifier does not know: "
        f"{list(unknown[:8])}{'...' if len(unknown) > 8 else ''}. It knows {list(known[:8])}"
        f"{'...' if len(known) > 8 else ''}. {advice}"
    )


def read_positive(clf: FewShotClassifier, positive: str | None) -> int | None:
    """Find the row of the class that is measured against the rest; None where there is none.

    Of two classes it is the second unless the other is named, as scikit-learn takes the greater label.
    """
    if positive is not None:
        row = _row(clf, positive)
        if row < 0:
            raise unexpected(
                "positive", positive, f"a class of this classifier: {list(clf.class_names_[:8])}"
            )
        return row
    return 1 if len(clf.class_names_) == 2 else None

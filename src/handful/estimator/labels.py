"""Labels and class names: which classes a fit has, in which order, and which row each label means.

One order holds everywhere: the rows of a head, the columns of an answer, `class_names_` and `classes_` are
sorted by what `predict` gives, as scikit-learn sorts its classes. The order in which names were given only
says what integer labels and the rows of class weights mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from handful.data.given import count_items
from handful.data.names import check_names, clean_name, name_key, number_same
from handful.data.sets import ImageSet
from handful.errors import DataError, counted, unexpected
from handful.types import Labels


@dataclass(frozen=True)
class Classes:
    """The classes of a fit.

    Attributes
    ----------
    names
        C names, as a text method reads them and people see them.
    labels
        `[C]`, what `predict` gives for each: names as they were written, or integers; sorted.
    given
        The names in the order in which they were given. Where `labels` are names, an integer label is a row
        of it; the rows of class weights are.
    notes
        What the user should know, a sentence each.
    """

    names: tuple[str, ...]
    labels: NDArray[Any]
    given: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of_names(cls, written: Sequence[str]) -> Classes:
        """Sort class names, which are the labels too."""
        given = check_names(written)
        words = [str(name) for name in written]
        order = sorted(range(len(words)), key=words.__getitem__)
        return cls(tuple(given[row] for row in order), np.array([words[row] for row in order]), given)

    @classmethod
    def of_any_names(cls, written: Sequence[str]) -> Classes:
        """Sort class names, the second and further of the same ones numbered: "crane", "crane (2)"."""
        words, notes = number_same(written)
        return replace(cls.of_names(words), notes=notes)

    @property
    def are_integers(self) -> bool:
        """Whether `predict` gives integers (or booleans), not names."""
        return self.labels.dtype.kind in "iub"

    @property
    def order(self) -> list[int]:
        """`[C]`, which of the given names each row is."""
        place = {name: row for row, name in enumerate(self.given)}
        return [place[name] for name in self.names]

    @property
    def label_order(self) -> list[str]:
        """The names as they were given, where the rows are in another order; else empty."""
        return [] if self.given == self.names else list(self.given)

    def rows(self, labels: Labels, argument: str = "labels", strict: bool = True) -> NDArray[np.int64]:
        """Give the row of each label, `[N]`: of names in any case, of the integers that `fit` was given.

        One of no class is refused, or, not `strict`, -1: texts that are all of no class are refused anyhow.

        Raises
        ------
        DataError
            A label is of no class.
        """
        marks = read_marks(labels, argument)
        if marks.dtype.kind == "U":
            return match_names(marks.tolist(), self.names, strict)
        if not self.are_integers:
            if marks.dtype.kind == "b" or not 0 <= marks.min() <= marks.max() < len(self.names):
                raise DataError(
                    f"Got {argument} from {marks.min()} to {marks.max()} that leave 0 to "
                    f"{len(self.names) - 1}, expected class names, or rows of them as they were given."
                )
            return np.argsort(self.order)[marks]
        found = {label: row for row, label in enumerate(self.labels.tolist())}
        rows = [found.get(mark, -1) for mark in marks.tolist()]
        if strict and -1 in rows:
            raise DataError(
                f"Got {argument} such as {marks[rows.index(-1)]}, which this classifier does not know. It "
                f"knows {self.labels.tolist()[:8]}."
            )
        return np.array(rows, dtype=np.int64)


def read_labels(
    images: object,
    labels: Labels | None,
    class_names: Sequence[str] | None,
    kept: Sequence[str] | None,
    needs_names: bool,
) -> tuple[Classes, Tensor]:
    """Give the classes of a fit, and its labels `[N]` as rows of them.

    Parameters
    ----------
    images, labels, class_names
        As `fit` was given them.
    kept
        The parameter `class_names` of the estimator.
    needs_names
        Whether the method reads class names: then integers alone are not enough. Where it does not (class
        weights are given), names may come twice, and are numbered: integer labels tell classes apart.
    """
    names = kept if class_names is None else class_names
    if isinstance(images, ImageSet):
        if labels is not None or class_names is not None:
            raise DataError("An ImageSet has its own labels and class names: give neither beside it.")
        classes = Classes.of_names(images.class_names if kept is None else kept)
        return classes, torch.from_numpy(_place(images.class_names, classes)[images.labels])
    if images is None:
        if names is None:
            raise DataError("Got neither images nor class_names: nothing to fit.")
        classes = Classes.of_names(names) if needs_names else Classes.of_any_names(names)
        return classes, torch.zeros(0, dtype=torch.int64)
    marks = check_count(images, read_marks(labels))
    if marks.dtype.kind == "U":
        classes = Classes.of_names(_distinct(marks) if names is None else names)
        return classes, torch.from_numpy(_place(marks.tolist(), classes))
    if marks.dtype.kind == "b" and names is not None:
        raise DataError("Got boolean labels with class_names, expected names as labels, or integers.")
    if class_names is not None:
        classes = Classes.of_names(class_names) if needs_names else Classes.of_any_names(class_names)
        return classes, torch.from_numpy(classes.rows(marks))
    if names is not None:
        return _encoded(marks, names)
    if needs_names:
        raise DataError(
            "Integer labels say nothing about what the classes are. Give the labels as strings; or "
            "fit(..., class_names=[...]) in label order; or, where scikit-learn encodes string labels, the "
            f"parameter class_names of the estimator: {_example(marks)}."
        )
    values, rows = np.unique(marks, return_inverse=True)
    words = tuple(map(str, values.tolist()))
    return Classes(words, values, words), torch.as_tensor(rows)


def read_marks(labels: Labels | None, argument: str = "labels") -> NDArray[Any]:
    """Give labels `[N]`, at least one, of texts, integers or booleans.

    Raises
    ------
    DataError
        There are none, or they are something else.
    """
    if labels is None:
        raise DataError("Got images without labels. Give labels, or an ImageSet.")
    try:
        marks = np.asarray(labels, dtype=object if isinstance(labels, list | tuple) else None)  # no 1 as "1"
    except ValueError as error:
        raise DataError(f"Got {argument} that are no list of labels: {error}.") from error
    if marks.ndim == 2 and marks.shape[1] == 1:
        _warn_of_a_column(marks)
        marks = marks[:, 0]
    if marks.ndim != 1 or not len(marks):
        raise DataError(f"Got {argument} of shape {marks.shape}, expected [N], at least one.")
    values = [value.item() if hasattr(value, "item") else value for value in marks.tolist()]
    kinds = {_kind(value) for value in values}
    if kinds == {"text"}:
        return np.array([str(value) for value in values])
    if kinds == {"integer"} or kinds == {"boolean"}:
        return np.array(values)
    if kinds == {"number"}:
        if all(float(value).is_integer() for value in values):
            return np.array(values).astype(np.int64)
        raise DataError(
            f"Unknown label type: got {argument} such as {values[:3]}, expected texts or integers. "
            "Continuous values are no classes."
        )
    reason = "Complex data not supported: got" if "complex" in kinds else "Got"
    raise DataError(
        f"{reason} {argument} such as {values[:3]}, expected all texts or all integers. Convert them, and "
        "leave out images without a label."
    )


def check_count(images: Any, marks: NDArray[Any]) -> NDArray[Any]:
    """Give labels `[N]` back; refuse them if they are not one for each image."""
    count = count_items(images)
    if count is not None and count != len(marks):
        raise DataError(f"Got {counted(count)} and labels of shape {marks.shape}, expected one each.")
    return marks


def check_sample_weight(given: Any, count: int) -> NDArray[np.float64]:
    """Give the weight of each image, `[N]`: not below 0, and not all 0."""
    try:
        weights = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"Got sample_weight that is no list of numbers: {error}.") from error
    fine = weights.shape == (count,) and np.isfinite(weights).all() and weights.min(initial=0) >= 0
    if not fine or not weights.sum() > 0:
        raise DataError(
            f"Got sample_weight of shape {weights.shape}, expected {count} finite numbers >= 0, one for each "
            "image, not all of them 0."
        )
    return weights


def match_names(wanted: Sequence[object], names: Sequence[str], strict: bool = True) -> NDArray[np.int64]:
    """Find the row of each name among the fitted classes, whatever its capitals and the encoding of accents.

    Raises
    ------
    DataError
        A name is not among them; not `strict`, none is, and where some are the others are -1.
    """
    row_of = {name_key(name): row for row, name in enumerate(names)}
    row_of |= {name: row for row, name in enumerate(names)}  # as older versions saved them
    cleaned = [str(name) if str(name) in row_of else name_key(str(name)) for name in wanted]
    unknown = [name for name, clean in zip(wanted, cleaned, strict=True) if clean not in row_of]
    if unknown and (strict or len(unknown) == len(cleaned)):
        raise DataError(
            f"Got classes that this classifier does not know: {unknown[:8]}. It knows "
            f"{list(names)[:8]}{'...' if len(names) > 8 else ''}."
        )
    return np.array([row_of.get(clean, -1) for clean in cleaned], dtype=np.int64)


def _encoded(marks: NDArray[Any], names: Sequence[str]) -> tuple[Classes, Tensor]:
    """Read integers as scikit-learn's `LabelEncoder` numbers the names that the estimator keeps: sorted."""
    known, found = Classes.of_names(names), np.unique(marks).tolist()
    count = len(known.names)
    if found != list(range(count)):
        raise DataError(
            f"Got integer labels {found[:8]} with class_names of {count} classes, expected all of 0 to "
            f"{count - 1}, as scikit-learn encodes the sorted names. Other integers don't say which class is "
            "which: those of a fold without an image of some class, and of OneVsRestClassifier, which "
            "numbers one class 1 and the rest 0. Give more images of each class, fit on string labels, or "
            "take a method that reads no class names, without class_names."
        )
    notes: tuple[str, ...] = ()
    if known.names != known.given:
        shown = ", ".join(f"{row} is {name!r}" for row, name in enumerate(known.names[:3]))
        notes = (
            f"Integer labels were read as scikit-learn encodes the sorted class names: {shown}. If they are "
            "numbers of your own, give fit(..., class_names=) in their order.",
        )
    encoded = Classes(known.names, np.arange(count), known.given, notes)
    return encoded, torch.from_numpy(marks.astype(np.int64))


def _place(words: Sequence[str], classes: Classes) -> NDArray[np.int64]:
    """Give the row of each name, as it is written."""
    row_of = {name: row for row, name in enumerate(classes.names)}
    cleaned = [clean_name(word) for word in words]
    unknown = sorted(set(cleaned) - set(row_of))
    if unknown:
        raise unexpected("labels", unknown[:5], f"names among class_names={list(classes.given)[:8]}")
    return np.array([row_of[word] for word in cleaned], dtype=np.int64)


def _distinct(marks: NDArray[Any]) -> list[str]:
    """Give the labels, sorted; of two that are one name ("red_panda", "red panda") the first."""
    found: dict[str, str] = {}
    for word in np.unique(marks).tolist():
        found.setdefault(clean_name(word), word)
    return list(found.values())


def _kind(value: object) -> str:
    if isinstance(value, str):
        return "text"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, Integral):
        return "integer"
    return "number" if isinstance(value, float) else type(value).__name__


def _example(marks: NDArray[Any]) -> str:
    count = len(np.unique(marks))
    return "class_names=[" + ", ".join(["..."] * min(count, 3)) + f"], all {count} of them"


def _warn_of_a_column(marks: NDArray[Any]) -> None:
    """Warn as scikit-learn does of labels `[N, 1]`."""
    import warnings

    from sklearn.exceptions import DataConversionWarning  # slow to import, and rare

    warnings.warn(
        f"A column-vector y was passed when a 1d array was expected: labels of shape {marks.shape}. Give "
        "labels.ravel().",
        DataConversionWarning,
        stacklevel=4,
    )

"""What a fit is given, made plain: names, labels, class weights, and the task of a method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from handful.backbones import Backbone
from handful.data.sets import ImageSet, check_names, clean_name
from handful.errors import DataError, ParameterError
from handful.features import Features
from handful.features.online import Online
from handful.features.views import Views
from handful.types import Labels

Source = Features | Online | Views
"""What a support set is read as: cached features, fresh crops, or what enters an image tower."""


@dataclass(frozen=True)
class Validation:
    """Labelled images that a method may choose its hyper-parameters on, and does not train on."""

    features: Tensor
    """`[N, E]` raw."""
    labels: Tensor
    """`[N]`, rows of the class names."""

    def accuracy(self, logits: Callable[[Tensor], Tensor]) -> float:
        """Give the share that is right, 0 to 1."""
        with torch.no_grad():
            return float((logits(self.features).argmax(1) == self.labels).double().mean())


@dataclass(frozen=True)
class Task:
    """What a method is given: the support set in feature space and the text classifier.

    Attributes
    ----------
    features
        The support set, `[N, V, E]` raw, or its crops; None for zero-shot.
    labels
        `[N]` int64.
    class_names
        In label order.
    text
        Class weights `[C, E]`, rows of unit norm; None for a method that does not read text.
    scale
        The inverse temperature of the backbone.
    encoder
        The backbone, for a method that works inside its towers.
    validation
        What `selection="val"` looks at, and `"oracle"`.
    key
        What makes a training that very training, so that an interrupted one can go on; None: it can't.
    """

    features: Source | None
    labels: Tensor
    class_names: tuple[str, ...]
    text: Tensor | None
    scale: float
    encoder: Backbone | None = None
    validation: Validation | None = None
    key: str | None = None

    @property
    def source(self) -> Features | Online:
        """The support set as features or fresh crops of it, or an error that says it is missing."""
        if isinstance(self.features, Views):
            raise DataError("This method works on features, and was given what enters an image tower.")
        return cast("Features | Online", self.inputs)

    @property
    def inputs(self) -> Source:
        """The support set to train on, or an error that says it is missing."""
        if self.features is None:
            raise DataError("This method learns from images: give fit(images, labels).")
        return self.features

    @property
    def support(self) -> Features:
        """The support set's features, or an error that says it is missing."""
        if not isinstance(self.source, Features):
            raise DataError("This method works on cached features: give a number of views, not 'online'.")
        return self.source

    @property
    def backbone(self) -> Backbone:
        """The backbone, or an error that says it is missing."""
        if self.encoder is None:
            raise ParameterError("This method works inside a text tower: give a backbone.")
        return self.encoder

    @property
    def text_weights(self) -> Tensor:
        """The text classifier, or an error that says it is missing."""
        if self.text is None:
            raise ParameterError("This method reads class names: give a backbone or class_weights=.")
        return self.text

    @property
    def held_out(self) -> Validation:
        """The validation images, or an error that says they are missing."""
        if self.validation is None:
            raise ParameterError(
                "selection='val' looks at validation images, selection='oracle' at the test images: give "
                "fit(..., validation=(images, labels)), or an ImageSet."
            )
        return self.validation


def is_encoded(images: object) -> bool:
    """Whether images come as features: `Features`, or an array `[N, E]` that holds no bytes."""
    if isinstance(images, np.ndarray | Tensor):
        return images.ndim == 2 and images.dtype not in (np.uint8, torch.uint8)
    return isinstance(images, Features)


def read_labels(
    images: object, labels: Labels | None, class_names: Sequence[str] | None, uses_text: bool
) -> tuple[tuple[str, ...], Tensor, NDArray[Any]]:
    """Give class names, labels `[N]` as rows of them, and what predict answers with `[C]`."""
    if isinstance(images, ImageSet):
        if labels is not None or class_names is not None:
            raise DataError("An ImageSet has its own labels and class names: give neither beside it.")
        names = check_names(images.class_names)
        return names, torch.as_tensor(images.labels), np.array(names)
    if images is None:
        if class_names is None:
            raise DataError("Got neither images nor class_names: nothing to fit.")
        names = check_names(class_names)
        return names, torch.zeros(0, dtype=torch.int64), np.array(names)
    if labels is None:
        raise DataError("Got images without labels. Give labels, or an ImageSet.")
    marks = np.asarray(labels)
    count = len(images) if hasattr(images, "__len__") else None
    if marks.ndim != 1 or (count is not None and count != len(marks)) or not len(marks):
        raise DataError(f"Got {count} images and labels of shape {marks.shape}, expected one each.")
    if marks.dtype.kind in "iu" and class_names is None and not uses_text:
        values, rows = np.unique(marks, return_inverse=True)
        return tuple(map(str, values)), torch.as_tensor(rows), values
    paired = ImageSet.from_lists(range(len(marks)), marks.tolist(), class_names)  # type: ignore[arg-type]
    return paired.class_names, torch.as_tensor(paired.labels), np.array(paired.class_names)


def match_names(wanted: Sequence[object], names: Sequence[str]) -> NDArray[np.int64]:
    """Find the row of each name among the fitted classes, without regard to case.

    Raises
    ------
    DataError
        A name is not among them.
    """
    row_of = {name.casefold(): row for row, name in enumerate(names)}
    cleaned = [clean_name(str(name)).casefold() for name in wanted]
    unknown = [name for name, clean in zip(wanted, cleaned, strict=True) if clean not in row_of]
    if unknown:
        raise DataError(
            f"Got classes that this classifier does not know: {unknown[:8]}. It knows "
            f"{list(names)[:8]}{'...' if len(names) > 8 else ''}."
        )
    return np.array([row_of[clean] for clean in cleaned], dtype=np.int64)


def match_labels(labels: Labels, names: Sequence[str], classes: NDArray[Any]) -> Tensor:
    """Give rows of the fitted classes `[N]` for labels: names, rows, or the integers of `classes`."""
    try:
        marks = np.asarray(labels)
    except ValueError as error:
        raise DataError(f"Got validation labels that are no list of labels: {error}.") from error
    if marks.ndim != 1 or not len(marks):
        raise DataError(f"Got validation labels of shape {marks.shape}, expected [N], at least one.")
    if classes.dtype.kind in "iu" or marks.dtype.kind not in "iu":
        return torch.from_numpy(match_names(marks.tolist(), names))
    if not (len(marks) and marks.min() >= 0 and marks.max() < len(names)):
        raise DataError(f"Got integer labels that leave 0 to {len(names) - 1}, or none.")
    return torch.from_numpy(marks.astype(np.int64))


def read_class_weights(given: Any, classes: int) -> Tensor:
    """Check a text classifier `[C, E]` that a user gives, and normalise its rows."""
    try:
        given = torch.stack([torch.as_tensor(row) for row in given]) if isinstance(given, list) else given
        weights = torch.as_tensor(given).detach().float()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"Got class_weights that are no array of numbers: {error}.") from error
    if not torch.isfinite(weights).all():
        raise DataError("Got class_weights that hold NaN or infinity, expected finite numbers.")
    if weights.ndim != 2 or len(weights) != classes:
        raise DataError(f"Got class_weights of shape {list(weights.shape)}, expected [{classes}, E].")
    return torch.nn.functional.normalize(weights, dim=-1)

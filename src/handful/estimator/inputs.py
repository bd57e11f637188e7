"""What a fit is given, made plain: names, labels, class weights, and the task of a method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from handful.backbones import Backbone
from handful.data.sets import ImageSet, check_names
from handful.errors import DataError, ParameterError
from handful.features import Features
from handful.features.online import Online
from handful.types import Labels


@dataclass(frozen=True)
class Task:
    """What a method is given: the support set in feature space and the text classifier.

    Attributes
    ----------
    features
        The support set, `[N, V, E]` raw; None for zero-shot.
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
    """

    features: Features | Online | None
    labels: Tensor
    class_names: tuple[str, ...]
    text: Tensor | None
    scale: float
    encoder: Backbone | None = None

    @property
    def source(self) -> Features | Online:
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


def read_class_weights(given: Tensor | NDArray[Any], classes: int) -> Tensor:
    """Check a text classifier `[C, E]` that a user gives, and normalise its rows."""
    try:
        weights = torch.as_tensor(given).detach().float()
    except (TypeError, ValueError) as error:
        raise DataError(f"Got class_weights that are no array of numbers: {error}.") from error
    if not torch.isfinite(weights).all():
        raise DataError("Got class_weights that hold NaN or infinity, expected finite numbers.")
    if weights.ndim != 2 or len(weights) != classes:
        raise DataError(f"Got class_weights of shape {list(weights.shape)}, expected [{classes}, E].")
    return torch.nn.functional.normalize(weights, dim=-1)

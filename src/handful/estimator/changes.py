"""Classes and images that come and go after fitting, with no training: a fresh fit on what was kept."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from handful.data.sets import ImageSet, check_names
from handful.errors import DataError, ParameterError
from handful.estimator.inputs import Task, match_names, read_class_weights
from handful.features import Features
from handful.prompts import class_weights as text_classifier

if TYPE_CHECKING:
    from handful.estimator import FewShotClassifier

Classifier = TypeVar("Classifier", bound="FewShotClassifier")
MOST_NAMED = 100_000
"""Support images whose names are kept, to say which of them decided."""


@dataclass(frozen=True)
class Kept:
    """What a classifier keeps of its fit: class names and weights, and the support set where it has one."""

    names: tuple[str, ...]
    text: Tensor
    """`[C, E]`."""
    keys: Tensor | None
    """`[N, E]`."""
    labels: Tensor
    """`[N]`."""
    items: list[str]
    """What the support images are called; empty for too many."""
    shots: list[int]
    """Images of each class."""

    def with_class(self, name: str, text: Tensor) -> Kept:
        """Add a class without images."""
        return replace(
            self, names=(*self.names, name), text=torch.cat([self.text, text]), shots=[*self.shots, 0]
        )

    def with_images(self, row: int, keys: Tensor, items: list[str]) -> Kept:
        """Add images to a class."""
        shots = [count + len(items) * (number == row) for number, count in enumerate(self.shots)]
        if self.keys is None:
            return replace(self, shots=shots)
        return replace(
            self,
            keys=torch.cat([self.keys, keys]),
            labels=torch.cat([self.labels, torch.full((len(keys),), row)]),
            items=[*self.items, *items] if len(self.items) == len(self.keys) else [],
            shots=shots,
        )

    def without(self, row: int) -> Kept:
        """Leave out a class and its images."""
        left = [number for number in range(len(self.names)) if number != row]
        rest = self.labels != row
        return Kept(
            tuple(self.names[number] for number in left),
            self.text[left],
            None if self.keys is None else self.keys[rest],
            self.labels[rest] - (self.labels[rest] > row).long(),
            [item for item, stays in zip(self.items, rest.tolist(), strict=False) if stays],
            [self.shots[number] for number in left],
        )


def kept(clf: FewShotClassifier) -> Kept:
    """Give what a fitted classifier keeps, or say that its method trains on its images."""
    head: Any = clf.fitted_head()
    if not clf.online:
        raise ParameterError(
            f"{type(clf).__name__} would have to train again: classes and images come and go without "
            "training for ZeroShot, TipAdapter and MetaAdapter. Fit it on the new support set."
        )
    keys = getattr(head, "keys", None)
    labels = torch.zeros(0, dtype=torch.int64) if keys is None else head.labels
    shots = clf.shots_ or [0] * len(clf.class_names_)
    return Kept(clf.class_names_, head.class_weights, keys, labels, clf.support_, shots)


def add_class(clf: FewShotClassifier, name: str, images: Any, class_weight: Any) -> Kept:
    """Add a class, with or without images."""
    now, names = kept(clf), check_names([*clf.class_names_, name])
    if class_weight is not None:
        text = read_class_weights([class_weight], 1)
    elif clf.templates_:
        text = text_classifier(clf.loaded_backbone(), names[-1:], clf.templates_).cpu()
    else:
        raise ParameterError(
            "This was fitted on class weights that were given: give add_class(..., class_weight=) for the "
            "new class."
        )
    if text.shape[1] != now.text.shape[1]:
        raise DataError(f"Got a class weight {text.shape[1]} wide, expected {now.text.shape[1]}.")
    now = now.with_class(names[-1], text)
    return now if images is None else _with_images(clf, now, len(names) - 1, images)


def add_images(clf: FewShotClassifier, name: str, images: Any) -> Kept:
    """Add images to a class."""
    now = kept(clf)
    return _with_images(clf, now, int(match_names([name], now.names)[0]), images)


def remove_class(clf: FewShotClassifier, name: str) -> Kept:
    """Leave out a class and its images."""
    now = kept(clf)
    if len(now.names) == 1:
        raise DataError(f"{name!r} is the only class: a classifier needs one.")
    return now.without(int(match_names([name], now.names)[0]))


def _with_images(clf: FewShotClassifier, now: Kept, row: int, images: Any) -> Kept:
    if isinstance(images, ImageSet):
        others = set(match_names(images.class_names, now.names)[images.labels].tolist()) - {row}
        if others:
            found = [now.names[other] for other in sorted(others)][:8]
            raise DataError(
                f"Got an ImageSet with images of {found}, expected only {now.names[row]!r}: add the images "
                "of one class at a time."
            )
    features = as_fitted(clf).encode_support(images)
    if features.values.shape[-1] != now.text.shape[1]:
        raise DataError(f"Got features {features.values.shape[-1]} wide, expected {now.text.shape[1]}.")
    return now.with_images(
        row, features.directions(), item_names(images, len(features), next_number(now.items))
    )


def as_fitted(clf: Classifier) -> Classifier:
    """Give a copy with the parameters that it was fitted with, whatever was set since."""
    fitted = copy(clf)
    for name, value in clf.fitted_with_.items():
        setattr(fitted, name, value)
    return fitted


def next_number(items: list[str]) -> int:
    """Give the first number that no support image without a path has yet."""
    numbers = [item.removeprefix("image ") for item in items if item.startswith("image ")]
    return max([int(number) for number in numbers if number.isdecimal()], default=-1) + 1


def task_of(clf: FewShotClassifier, now: Kept) -> Task:
    """Give the task of a fresh fit on what is kept."""
    head: Any = clf.fitted_head()
    features = None if now.keys is None else Features(now.keys[:, None])
    backbone = clf.find_backbone(needed=False)
    return Task(features, now.labels, now.names, now.text, head.scale, backbone)


def item_names(images: Any, count: int, first: int = 0) -> list[str]:
    """Name support images: their paths where they have any, else their numbers."""
    items = getattr(images, "items", images)
    if isinstance(items, str | Path):
        items = [items]
    given = list(items) if isinstance(items, list | tuple) and len(items) == count else [None] * count
    if count > MOST_NAMED:
        return []
    return [
        str(item) if isinstance(item, str | Path) else f"image {first + number}"
        for number, item in enumerate(given)
    ]

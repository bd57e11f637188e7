"""Classes and images that come and go after fitting, with no training: a fresh fit on what was kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from handful.backbones import Backbone
from handful.data.items import is_one, path_of
from handful.data.names import check_names
from handful.data.sets import ImageSet
from handful.data.templates import Prompts, for_classes, has_prompts, resolve_templates
from handful.errors import DataError, ParameterError
from handful.estimator import seen
from handful.estimator.confidence import Calibration
from handful.estimator.fitted import Fitted
from handful.estimator.inputs import plain, read_class_weights
from handful.estimator.labels import match_names
from handful.estimator.task import Learned, Task
from handful.features import Features

Encode = Callable[[Any], Features]
"""Gives the features of more support images, as the fit read its own."""
MOST_NAMED = 100_000
"""Support images whose names are kept, to say which of them decided."""


@dataclass(frozen=True)
class Kept:
    """What a classifier keeps of its fit: class names and weights, and the support set where it has one."""

    names: tuple[str, ...]
    text: Tensor
    """`[C, E]`."""
    keys: Tensor | None
    """`[N, E]`, or of every view, `[N, V, E]`."""
    labels: Tensor
    """`[N]`."""
    items: list[str]
    """What the support images are called; empty for too many."""
    shots: list[int]
    """Images of each class."""
    classes: list[Any]
    """What predict answers with."""
    given: tuple[str, ...]
    """The names in the order of integer labels."""
    digests: tuple[str, ...]
    """Of the support images, `[N]`; "" for one that is unknown."""

    def with_class(self, name: str, written: str, text: Tensor) -> Kept:
        """Add a class without images, in its place among the sorted ones."""
        classes, names = [*self.classes, written], (*self.names, name)
        order = sorted(range(len(classes)), key=classes.__getitem__)
        place = torch.tensor(order).argsort()
        shots = [*self.shots, 0]
        return replace(
            self, names=tuple(names[row] for row in order), text=torch.cat([self.text, text])[order],
            labels=place[self.labels], shots=[shots[row] for row in order],
            classes=[classes[row] for row in order], given=(*self.given, name),
        )  # fmt: skip

    def with_images(self, row: int, features: Features, items: list[str]) -> Kept:
        """Add images to a class."""
        shots = [count + len(items) * (number == row) for number, count in enumerate(self.shots)]
        if self.keys is None:
            return replace(self, shots=shots)
        if self.keys.ndim == 2:
            keys = features.directions()
        elif self.keys.shape[1] == 1:
            keys = features.directions()[:, None]
        else:
            keys = F.normalize(features.values, dim=-1)
        if keys.shape[1:] != self.keys.shape[1:] and len(self.keys):
            raise DataError(
                f"Got {keys.shape[1]} views of an image, expected {self.keys.shape[1]}, as the others have."
            )
        return replace(
            self,
            keys=torch.cat([self.keys, keys]) if len(self.keys) else keys,
            labels=torch.cat([self.labels, torch.full((len(keys),), row)]),
            items=[*self.items, *items] if len(self.items) == len(self.keys) else [],
            shots=shots,
            digests=(*self.digests, *(seen.shorten(features.digests) or [""] * len(keys))),
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
            [self.classes[number] for number in left],
            tuple(name for name in self.given if name != self.names[row]),
            tuple(digest for digest, stays in zip(self.digests, rest.tolist(), strict=True) if stays),
        )


def kept(fitted: Fitted) -> Kept:
    """Give what a fit keeps."""
    tensors, support = fitted.head.tensors(), fitted.head.support
    labels = torch.zeros(0, dtype=torch.int64) if support is None else support.labels
    shots = list(fitted.shots) or [0] * len(fitted.class_names)
    keys = None if support is None else support.keys
    digests = tuple(fitted.digests.get(seen.SUPPORT, ()))
    if len(digests) != len(labels):
        digests = ("",) * len(labels)
    return Kept(
        fitted.class_names, tensors["class_weights"], keys, labels.long(), list(fitted.support), shots,
        fitted.classes.tolist(), fitted.known.given, digests,
    )  # fmt: skip


def add_class(
    fitted: Fitted, name: str, class_weight: Any, encode_name: Callable[[str], Tensor]
) -> tuple[Kept, str]:
    """Add a class without images, and give its name as it is now."""
    now, names = kept(fitted), check_names([*fitted.class_names, name])
    if fitted.known.are_integers:
        raise DataError(
            f"This classifier answers with integers, {now.classes[:8]}, and {name!r} has none. Fit it again "
            "with class names as labels."
        )
    if class_weight is not None:
        text = F.normalize(read_class_weights([class_weight], 1), dim=-1)
    elif fitted.templates:
        text = encode_name(names[-1])
    else:
        raise ParameterError(
            "This was fitted on class weights that were given: give add_class(..., class_weight=) for the "
            "new class."
        )
    if text.shape[1] != now.text.shape[1]:
        raise DataError(f"Got a class weight {text.shape[1]} wide, expected {now.text.shape[1]}.")
    return now.with_class(names[-1], name, text), names[-1]


def templates_for(fitted: Fitted, name: str) -> Prompts:
    """Give the templates of a fit for one more class.

    Raises
    ------
    ParameterError
        They are prompts by class, and this one has none.
    """
    templates = _templates_of(fitted, [name])
    if not templates:
        raise ParameterError(
            f"This was fitted on prompts by class, and has none for {name!r}. Give add_class({name!r}, ..., "
            f"class_weight=handful.class_weights(backbone, [{name!r}], {{{name!r}: [PROMPT, ...]}})[0])."
        )
    return templates


def _templates_of(fitted: Fitted, names: Sequence[str]) -> Prompts:
    """Give the templates of a fit; of prompts by class, those that there are for some names."""
    if isinstance(fitted.templates, tuple):
        return fitted.templates
    given = resolve_templates(fitted.parameters.get("templates"))
    return for_classes([name for name in names if has_prompts(name, given)], given)


def add_images(now: Kept, name: str, images: Any, encode: Encode) -> Kept:
    """Add images to a class."""
    row = int(match_names([name], now.names)[0])
    if isinstance(images, ImageSet):
        others = set(match_names(images.class_names, now.names)[images.labels].tolist()) - {row}
        if others:
            found = [now.names[other] for other in sorted(others)][:8]
            raise DataError(
                f"Got an ImageSet with images of {found}, expected only {now.names[row]!r}: add the images "
                "of one class at a time."
            )
    features = encode(plain(images))
    if features.values.shape[-1] != now.text.shape[1]:
        raise DataError(f"Got features {features.values.shape[-1]} wide, expected {now.text.shape[1]}.")
    return now.with_images(row, features, item_names(images, len(features), next_number(now.items)))


def remove_class(now: Kept, name: str) -> Kept:
    """Leave out a class and its images."""
    if len(now.names) == 1:
        raise DataError(f"{name!r} is the only class: a classifier needs one.")
    return now.without(int(match_names([name], now.names)[0]))


def task_of(fitted: Fitted, now: Kept, backbone: Backbone | None) -> Task:
    """Give the task of a fresh fit on what is kept."""
    keys = now.keys[:, None] if now.keys is not None and now.keys.ndim == 2 else now.keys
    features = None if keys is None else Features(keys)
    scale = float(fitted.head.settings()["scale"])
    balance = fitted.parameters.get("balance", True)
    return Task(features, now.labels, now.names, now.text, scale, backbone, balance=balance)


def refitted(fitted: Fitted, now: Kept, learned: Learned, calibration: Calibration | None) -> Fitted:
    """Give the fit of a support set that was changed; a calibration is what the method held out anew."""
    order = () if now.given == now.names else now.given
    fresh = replace(
        fitted, head=learned.head, selection=learned.selection, selected=learned.selected,
        notes=(), losses=learned.losses, class_names=now.names, classes=np.array(now.classes),
        label_order=order, shots=tuple(now.shots), support=tuple(now.items), learned_on=(), draw=None,
        scores=(), calibration=calibration, templates=_templates_of(fitted, now.names),
        given_weights=None, digests=seen.keep(now.digests, fitted.digests.get(seen.VALIDATION, ())),
    )  # fmt: skip
    before = fitted.calibration
    if before and (calibration is None or calibration.false_alarm != before.false_alarm):
        return fresh.noting("It was calibrated on another support set: call calibrate again.")
    return fresh


def next_number(items: list[str]) -> int:
    """Give the first number that no support image without a path has yet."""
    numbers = [item.removeprefix("image ") for item in items if item.startswith("image ")]
    return max([int(number) for number in numbers if number.isdecimal()], default=-1) + 1


def item_names(images: Any, count: int, first: int = 0) -> list[str]:
    """Name support images: their paths where they have any, also those of open files, else their numbers."""
    if count > MOST_NAMED:
        return []
    items = images.items if isinstance(images, ImageSet) else [images] if is_one(images) else images
    given = list(items) if isinstance(items, list | tuple) and len(items) == count else [None] * count
    return [path_of(item) or f"image {first + number}" for number, item in enumerate(given)]

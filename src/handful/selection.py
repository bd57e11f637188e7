"""Choosing hyper-parameters without looking at a test image: `choose` reads the four words for all methods.

`fixed`: the same for every task. `support`: by cross-validation inside the support set. `val`: on
validation images. `oracle`: on the images of the test, as some published recipes do. `handful.search` has
the exact search over a residual ratio.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Generic, Protocol, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from handful.balance import share_right, whole_weights
from handful.errors import unexpected
from handful.types import Selection

T = TypeVar("T")
MOST_FOLDS = 16
"""Folds of a closed form: 16 shots are the most of the few-shot protocol."""


@dataclass(frozen=True)
class Validation:
    """Labelled images that hyper-parameters may be chosen on.

    Attributes
    ----------
    features, labels
        Raw, `[N, E]`, and `[N]`.
    balance
        Whether accuracy on them is the mean over classes, not over images.
    digests
        SHA-256 of each image; empty if unknown.
    """

    features: Tensor
    labels: Tensor
    balance: bool = False
    digests: tuple[str, ...] = ()

    @property
    def weights(self) -> Tensor:
        """What a right answer to each image counts, `[N]`, whole numbers."""
        return whole_weights(self.labels, self.balance)

    def accuracy(self, logits: Callable[[Tensor], Tensor]) -> float:
        """Give the accuracy of some logits `[N, C]`, 0 to 1."""
        with torch.no_grad():
            return self.share(logits(self.features).argmax(1) == self.labels)

    def share(self, right: Tensor) -> float:
        """Give the accuracy, 0 to 1, by which images are right, `[N]`."""
        return share_right(right, self.labels, self.balance)


class Chosen(Protocol):
    """What `choose` looks at of a task."""

    @property
    def labels(self) -> Tensor:
        """Labels of the support set, `[N]`."""
        ...

    @property
    def held_out(self) -> Validation:
        """Validation images, or what an oracle was given; an error if there are none. Their accuracy is the
        mean over classes where the support set is balanced."""
        ...


@dataclass(frozen=True)
class Choice(Generic[T]):
    """What was chosen, how, and what to know of it."""

    value: T
    selection: Selection
    notes: tuple[str, ...] = ()


def choose(
    word: Selection, task: Chosen, fit: Callable[[], T], search: Callable[[Validation | None], T], what: str
) -> Choice[T]:
    """Fit with fixed hyper-parameters or search them, as a word of `Selection` asks.

    Parameters
    ----------
    word
        `"fixed"`, `"support"`, `"val"` or `"oracle"`.
    task
        What is fitted.
    fit
        Fits with hyper-parameters as they were given.
    search
        Searches them on images that were seen, or, given None, inside the support set.
    what
        The hyper-parameters in words, for a note: "alpha and beta".

    Raises
    ------
    ParameterError
        It is another word, or no validation images were given for `"val"` and `"oracle"`.
    """
    if not isinstance(word, str) or word not in get_args(Selection):
        raise unexpected("selection", word, f"one of {list(get_args(Selection))}")
    if word == "val":
        return Choice(search(task.held_out), word)
    if word == "oracle":  # as published: the accuracy that the table states
        return Choice(search(replace(task.held_out, balance=False)), word)
    if word == "fixed":
        return Choice(fit(), word)
    if smallest_class(task.labels.numpy()) < 2:
        note = f"One image of some class: the support set was not searched for {what}, it is as given."
        return Choice(fit(), "fixed", (note,))
    return Choice(search(None), word)


def folds(labels: NDArray[Any], count: int) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Split a support set into `count` folds that each hold every class's share of images.

    The i-th image of a class goes to fold i modulo `count`, so a draw decides the folds. Gives rows
    to fit on and rows held out. Every class keeps an image to fit on: one that is alone is never held out.
    """
    marks = torch.as_tensor(labels)
    order, alone = shot_numbers(marks).numpy(), (torch.bincount(marks)[marks] == 1).numpy()
    for fold in range(count):
        held_out = (order % count == fold) & ~alone
        if held_out.any() and not held_out.all():
            yield np.flatnonzero(~held_out), np.flatnonzero(held_out)


def shot_numbers(labels: Tensor) -> Tensor:
    """Give the number of each image `[N]` among the images of its class, from 0."""
    numbers = torch.zeros_like(labels)
    for label in labels.unique():
        rows = labels == label
        numbers[rows] = torch.arange(int(rows.sum()))
    return numbers


def shot_folds(labels: Tensor, most: int = MOST_FOLDS) -> Tensor:
    """Give the fold of each image `[N]`: one shot of every class at a time, or several where there are more
    than `most`; -1 for one that is alone in its class, which is never held out."""
    alone = torch.bincount(labels)[labels] == 1
    return (shot_numbers(labels) % most).masked_fill(alone, -1)


def first_shots(labels: Tensor) -> Tensor:
    """Mark one image of every class that has two or more, `[N]` of bool: the one to hold out."""
    return (shot_numbers(labels) == 0) & (torch.bincount(labels)[labels] > 1)


def smallest_class(labels: NDArray[Any]) -> int:
    """Images of the smallest class that has any; 0 where none has."""
    return int(np.unique(labels, return_counts=True)[1].min(initial=len(labels)))


def search_c(score: Callable[[float], float], steps: int = 8) -> float:
    """CoOp's search for a linear probe's C: seven decades, then bisection (Zhou et al. 2022a, code).

    The best of 1e6, 1e4, ..., 1e-6 (the first, largest one on ties) is bracketed by a decade on
    either side; each of `steps` steps fits both ends and draws the worse one to the geometric mean
    of the two; ties go left, to the smaller C.

    Parameters
    ----------
    score
        Validation accuracy for a C; called for the grid in ascending order, so that a solver may
        start from where it was.
    """
    score = cache(score)  # one end of the bracket stays from step to step
    grid = [10.0**power for power in (-6, -4, -2, 0, 2, 4, 6)]
    best = max(reversed([(score(c), c) for c in grid]), key=lambda pair: pair[0])[1]
    left, right = best / 10, best * 10
    kept = best
    for _ in range(steps):
        middle = float(np.sqrt(left * right))
        if score(left) < score(right):
            kept, left = right, middle
        else:
            kept, right = left, middle
    return kept

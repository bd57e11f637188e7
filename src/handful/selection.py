"""Choosing hyper-parameters without looking at a test image.

Cross-validation inside the support set; `handful.search` has the exact search over a residual ratio.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from handful.errors import unexpected
from handful.types import Selection


def check_selection(selection: str, allowed: Sequence[Selection]) -> None:
    """Refuse a way of selection that a method does not offer."""
    if selection not in allowed:
        raise unexpected("selection", selection, f"one of {list(allowed)}")


def folds(labels: NDArray[Any], count: int) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Split a support set into `count` folds that each hold every class's share of images.

    The i-th image of a class goes to fold i modulo `count`, so a draw decides the folds. Gives rows
    to fit on and rows held out. Every class keeps an image to fit on if it has at least two.
    """
    order = shot_numbers(torch.as_tensor(labels)).numpy()
    for fold in range(count):
        held_out = order % count == fold
        if held_out.any() and not held_out.all():
            yield np.flatnonzero(~held_out), np.flatnonzero(held_out)


def shot_numbers(labels: Tensor) -> Tensor:
    """Give the number of each image `[N]` among the images of its class, from 0."""
    numbers = torch.zeros_like(labels)
    for label in labels.unique():
        rows = labels == label
        numbers[rows] = torch.arange(int(rows.sum()))
    return numbers


def first_shots(labels: Tensor) -> Tensor:
    """Mark one image of every class that has two or more, `[N]` of bool: the one to hold out."""
    return (shot_numbers(labels) == 0) & (torch.bincount(labels)[labels] > 1)


def smallest_class(labels: NDArray[Any]) -> int:
    """Images of the smallest class that has any; 0 where none has."""
    return int(np.unique(labels, return_counts=True)[1].min(initial=len(labels)))


def search_c(score: Callable[[float], float], steps: int = 8) -> float:
    """CoOp's search for a linear probe's C (methods.md §1.2): seven decades, then bisection.

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

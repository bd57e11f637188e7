"""Choosing hyper-parameters without looking at a test image.

Cross-validation inside the support set, and the exact search over a residual ratio.
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
    order = np.zeros(len(labels), dtype=int)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        order[rows] = np.arange(len(rows))
    for fold in range(count):
        held_out = order % count == fold
        if held_out.any() and not held_out.all():
            yield np.flatnonzero(~held_out), np.flatnonzero(held_out)


def smallest_class(labels: NDArray[Any]) -> int:
    """Images of the smallest class that has any."""
    return int(np.unique(labels, return_counts=True)[1].min())


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


def best_ratio(base: Tensor, extra: Tensor, labels: Tensor, low: float, high: float) -> tuple[float, float]:
    """Find the ratio a in [low, high] at which `base + a * extra` is right most often, exactly.

    An image of class y is right where `a (extra_y - extra_c) > base_c - base_y` for every other c:
    an interval of a. Sweeping the interval ends counts, for every a at once, how many images are
    right. The answer is the middle of the first stretch with the most.

    Parameters
    ----------
    base, extra
        Logits `[N, C]`.
    labels
        `[N]`.

    Returns
    -------
    ratio, accuracy
        The accuracy is between 0 and 1, and reached at that very ratio.
    """
    own = labels[:, None]
    slope = (extra.gather(1, own) - extra).double()  # [N, C]; > 0: a larger ratio helps against c
    gap = (base - base.gather(1, own)).double()
    rival = torch.ones_like(slope, dtype=torch.bool).scatter_(1, own, False)
    starts = (gap / slope).masked_fill(~rival | (slope <= 0), -torch.inf).amax(1).clamp(min=low)
    ends = (gap / slope).masked_fill(~rival | (slope >= 0), torch.inf).amin(1).clamp(max=high)
    possible = ~(rival & (slope == 0) & (gap >= 0)).any(1) & (starts < ends)
    starts, ends = starts[possible].sort().values, ends[possible].sort().values
    cuts = torch.cat([starts.new_tensor([low, high]), starts, ends]).unique()
    left = cuts[:-1]  # between two neighbouring cuts nothing changes
    right_answers = torch.searchsorted(starts, left, right=True) - torch.searchsorted(ends, left, right=True)
    stretch = int(right_answers.argmax())
    ratio = float((cuts[stretch] + cuts[stretch + 1]) / 2)
    return ratio, float(((base + ratio * extra).argmax(1) == labels).double().mean())

"""Recipes of evaluation. Here: few-shot curves (methods.md §9.2)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from sklearn.base import clone

from handful.data import ImageSet, few_shot
from handful.estimator import FewShotClassifier
from handful.metrics import Cell

SHOTS = (1, 2, 4, 8, 16)
SEEDS = (1, 2, 3)


def few_shot_curves(
    methods: Mapping[str, FewShotClassifier],
    train: ImageSet,
    test: ImageSet,
    shots: Sequence[int] = SHOTS,
    seeds: Sequence[int] = SEEDS,
) -> Iterator[Cell]:
    """Fit every method on every draw, and score it on the whole test split.

    Parameters
    ----------
    methods
        Unfitted estimators by name; each cell fits a clone.
    train, test
        Draws come from `train` (CoOp's, for each seed); `test` is only scored.
    shots, seeds
        Images per class, and the draws of each.
    """
    for count in shots:
        for seed in seeds:
            support = few_shot(train, count, seed)
            for name, method in methods.items():
                start = time.perf_counter()
                clf = clone(method).fit(support)
                seconds = time.perf_counter() - start
                yield Cell(name, count, seed, clf.score(test), seconds, clf.selection_)

"""CoOp's linear probe, to the letter (methods.md §1.2)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from handful.backbones import Backbone
from handful.data import ImageSet
from handful.errors import DataError
from handful.features import encode
from handful.methods import LogisticProbe
from handful.metrics import SEEDS, SHOTS, Cell


def coop_probe_draw(
    train: ImageSet, val: ImageSet, shots: int, run: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw rows of train, class by class, and then `min(shots, 4)` a class of val, as CoOp's probe does."""
    generator = np.random.RandomState(run)
    rows, some = (
        np.concatenate(
            [
                generator.choice(np.flatnonzero(images.labels == label), size, replace=False)
                for label in range(len(train.class_names))
            ]
        )
        for images, size in ((train, shots), (val, min(shots, 4)))
    )
    return rows, some


def coop_linear_probe(
    backbone: Backbone,
    train: ImageSet,
    val: ImageSet,
    test: ImageSet,
    shots: Sequence[int] = SHOTS,
    runs: Sequence[int] = SEEDS,
) -> Iterator[Cell]:
    """Evaluate the linear probe as CoOp did, to the letter (methods.md §1.2).

    Features are encoded once, as for testing, and not normalised. A run's draws are NumPy's, other
    than CoOp's own: for each class in order its training images, then for each class
    `min(shots, 4)` validation images, which choose C.

    Parameters
    ----------
    backbone
        Any backbone.
    train, val, test
        The whole splits, with the same classes.
    shots, runs
        Images per class, and the seeds of the draws.
    """
    for images in (val, test):
        if images.class_names != train.class_names:
            raise DataError(f"Got classes {images.class_names[:8]}, expected those of train, in its order.")
    if not shots:
        raise DataError("Got shots=(), expected at least one number.")
    few = [np.bincount(images.labels, minlength=len(train.class_names)).min() for images in (train, val)]
    if few[0] < max(shots) or few[1] < min(max(shots), 4):
        raise DataError(
            f"Got classes of {few[0]} training and {few[1]} validation images, expected {max(shots)} and "
            f"{min(max(shots), 4)} of each."
        )
    x, seen, unseen = (encode(backbone, images) for images in (train, val, test))
    for count in shots:
        for run in runs:
            rows, some = coop_probe_draw(train, val, count, run)
            start = time.perf_counter()
            clf = LogisticProbe(backbone, selection="val").fit(
                x[rows],
                train.labels[rows],
                class_names=train.class_names,
                validation=(seen[some], val.labels[some]),
            )
            seconds = time.perf_counter() - start
            score = clf.score(unseen, test.labels)
            yield Cell("coop-linear-probe", count, run, score, seconds, clf.selection_)

"""CoOp's linear probe to the letter: its draws, as CoOp's published code makes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from handful.data import ImageSet
from handful.errors import DataError
from handful.names import SEEDS, SHOTS
from handful.protocols.draws import Draw

VALIDATION = 4
"""Validation images of a class, at most."""


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
        for images, size in ((train, shots), (val, min(shots, VALIDATION)))
    )
    return rows, some


def coop_probe_draws(
    train: ImageSet,
    val: ImageSet,
    test: ImageSet,
    shots: Sequence[int] = SHOTS,
    runs: Sequence[int] = SEEDS,
) -> Iterator[Draw]:
    """Learn and validate on the draws of CoOp's linear probe, test on the whole of `test`.

    The baseline of Zhou et al. 2022a, §4.1, for `LogisticProbe(selection="val")`, which searches C as that
    does. A run's draws are NumPy's, other than CoOp's own: for each class in order its training images,
    then for each class `min(shots, 4)` validation images.

    Parameters
    ----------
    train, val, test
        The whole splits, with the same classes.
    shots, runs
        Images per class, and the seeds of the draws.

    Raises
    ------
    DataError
        The classes differ, or one has too few images for the draws.
    """
    for images in (val, test):
        if images.class_names != train.class_names:
            raise DataError(f"Got classes {images.class_names[:8]}, expected those of train, in its order.")
    if not shots:
        raise DataError("Got shots=(), expected at least one number.")
    few = [np.bincount(images.labels, minlength=len(train.class_names)).min() for images in (train, val)]
    if few[0] < max(shots) or few[1] < min(max(shots), VALIDATION):
        raise DataError(
            f"Got classes of {few[0]} training and {few[1]} validation images, expected {max(shots)} and "
            f"{min(max(shots), VALIDATION)} of each."
        )
    for count in shots:
        for run in runs:
            rows, some = coop_probe_draw(train, val, count, run)
            yield Draw(count, run, train[rows], {"test": test}, validation=val[some])

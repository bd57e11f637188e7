"""Figures of merit. Spreads are population standard deviations, as the field prints them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def accuracy(predicted: Sequence[Any] | NDArray[Any], truth: Sequence[Any] | NDArray[Any]) -> float:
    """Share of right answers, 0 to 1 (top-1, every image counts alike)."""
    return float(np.mean(np.asarray(predicted) == np.asarray(truth)))


def per_class_accuracy(predicted: NDArray[Any], truth: NDArray[Any], classes: int) -> NDArray[np.float64]:
    """Accuracy on each class `[C]`; NaN where a class has no image."""
    right = np.bincount(truth, weights=predicted == truth, minlength=classes)
    count = np.bincount(truth, minlength=classes)
    return np.divide(right, count, out=np.full(classes, np.nan), where=count > 0)


def calibration_error(probabilities: NDArray[Any], truth: NDArray[Any], bins: int = 15) -> float:
    """Expected calibration error, 0 to 1: how far confidence is from accuracy, over bins of confidence.

    Guo et al. 2017, equation 3.
    """
    sure, right = probabilities.max(1), probabilities.argmax(1) == truth
    bin_ = np.minimum((sure * bins).astype(int), bins - 1)
    gap = np.bincount(bin_, weights=sure - right, minlength=bins)
    return float(np.abs(gap).sum() / len(truth))


def harmonic_mean(base: float, new: float) -> float:
    """`2 b n / (b + n)` of accuracies on base and new classes, each the mean over seeds.

    Of base to new (Zhou et al. 2022b, table 1).
    """
    return 2 * base * new / (base + new) if base + new else 0.0


def mean_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and population standard deviation over draws."""
    return float(np.mean(values)), float(np.std(values))

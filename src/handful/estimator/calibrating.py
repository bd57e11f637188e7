"""How a calibration is found inside the support set: on images that were held out, fold by fold.

`calibrate` fits again for each fold; `calibrate_by` takes what a method held out itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from handful.balance import effective_number, image_weights, is_unequal
from handful.errors import DataError, ParameterError, check_integer, check_number
from handful.estimator.confidence import FALSE_ALARM, TEMPERATURES, Calibration, at_temperature, threshold_at
from handful.estimator.conformal import HeldOutScores
from handful.estimator.task import HeldOut, Task
from handful.features import Features
from handful.heads import Head, check_logits
from handful.selection import folds

Refit = Callable[[NDArray[np.int64], NDArray[np.int64]], tuple[Tensor, Tensor, Tensor]]
"""Fits on some images and classifies others, by their rows: logits `[M, C]` of the others, and unit features
of both, `[N, E]` and `[M, E]`."""
SHARE = 0.5
"""Of the spread of cosines: with all of it, the area under the ROC curve is .008 more for left-out classes of
CLIP, and .008 less on `mini`."""
SMALLEST_SPREAD = 0.02
"""Of probabilities: where all are nearly 1, one that is a little lower says little."""


def calibrate(
    rows: NDArray[np.int64],
    class_names: tuple[str, ...],
    features: Callable[[], Tensor],
    refit: Refit,
    false_alarm: float,
    count: int,
    balance: bool = False,
) -> Calibration:
    """Calibrate a fit inside its support set; see `FewShotClassifier.calibrate`.

    Parameters
    ----------
    rows
        `[N]`, the class of each image.
    class_names
        For errors.
    features
        Gives unit features `[N, E]` of all images, by the fit itself.
    refit
        Fits again on all but a fold.
    false_alarm, count
        The stated rate, and how many folds there are at most.
    balance
        Whether classes count alike for the temperature and in prediction sets, as they do for the method.
    """
    false_alarm, count = check_rate("false_alarm", false_alarm), check_integer("folds", count, 2)
    shots = check_shots(rows, class_names)
    parts = list(_held_out(rows, refit, min(count, int(shots.max()))))
    logits, truth, familiar = (torch.cat(part) for part in zip(*parts, strict=True))
    temperature = fit_temperature(logits, truth, balance)
    found = at_temperature(logits, temperature)
    threshold, weight = unknown_rule(familiar, found, false_alarm)
    means = class_means(features(), torch.from_numpy(rows), len(class_names))
    scores = scores_of(found, truth, balance)
    return Calibration(temperature, threshold, false_alarm, len(truth), len(parts), means, weight, scores)


def of_fit(
    held_out: HeldOut | None, task: Task, head: Head, is_plain: bool, balance: bool
) -> tuple[Calibration | None, tuple[str, ...]]:
    """Give the calibration of a fit whose method held out images, and what to note of it."""
    if held_out is None:
        return None, ()
    features = task.inputs if task.has("inputs") else None
    x = None
    if isinstance(features, Features) and head.needs != "pixels":
        x = features.directions() if head.needs == "features" else task.hidden.mean(1)
        is_plain = is_plain and features.values.shape[1] == 1
    found = calibrate_by(held_out, task.labels, task.class_names, head, x, is_plain, balance)
    return found, () if is_plain else (of_views(True),)


def is_of_views(notes: Sequence[str]) -> bool:
    """Whether the notes of a fit say that it was calibrated on several views."""
    return of_views(True) in notes


def of_views(several: bool) -> str:
    """Say what of a calibration does not hold if it was found on several views of an image; else empty."""
    if not several:
        return ""
    return (
        "Calibrated on several views of each support image, which lie nearer to each other than the single "
        "images that come: probabilities and prediction sets are not exact, and with unknown='auto' more "
        "images would be called unknown than the false-alarm rate says (6 to 16 % were, at 5 %). Call "
        "calibrate(images, labels) with the images, or with features of one view each."
    )


def calibrate_by(
    held_out: HeldOut,
    labels: Tensor,
    class_names: tuple[str, ...],
    head: Head,
    x: Tensor | None,
    is_plain: bool,
    balance: bool,
) -> Calibration:
    """Calibrate a fit by what its method held out of the support set itself, with no other fit.

    How familiar an image looks is measured with each held-out image left out of the mean of its class. That
    takes an image of each class, plain images, and a head that leaves their features as they are; else
    nothing is called unknown.

    Parameters
    ----------
    held_out
        What the method gave.
    labels
        `[N]`, of the support set.
    class_names, head
        Of the fit.
    x
        What the head needs of the support set, `[N, ...]`; None where it needs pixels.
    is_plain
        Whether that is of images as they are, not of augmented views.
    balance
        See `calibrate`.

    Raises
    ------
    ParameterError
        The logits are not `[M, C]`, or the rows are not M different ones of the support set.
    """
    logits, rows, classes = held_out.logits.detach().float(), held_out.rows, len(class_names)
    _check_held_out(held_out, len(labels), classes)
    truth = labels[rows]
    temperature = 1.0 if held_out.calibrated else fit_temperature(check_logits(logits), truth, balance)
    found = at_temperature(logits, temperature)
    threshold, weight, means = -1.0, 0.0, torch.zeros(classes, head.width)
    if x is not None:
        features = head.image_features(x)
        means = class_means(features, labels, classes)
        if is_plain and not head.moves_images and len(labels.unique()) == classes:
            cosines = nearest_without(features, labels, rows, classes)
            threshold, weight = unknown_rule(cosines, found, FALSE_ALARM)
    scores = scores_of(found, truth, balance)
    return Calibration(temperature, threshold, FALSE_ALARM, len(rows), held_out.folds, means, weight, scores)


def _check_held_out(held_out: HeldOut, images: int, classes: int) -> None:
    logits, rows = held_out.logits, held_out.rows
    whole = rows.ndim == 1 and rows.dtype == torch.int64 and 0 < len(rows) == len(rows.unique())
    if not whole or logits.shape != (len(rows), classes) or not 0 <= rows.min() <= rows.max() < images:
        raise ParameterError(
            f"Got held_out of logits {list(logits.shape)} and rows {list(rows.shape)} of {rows.dtype}, "
            f"expected [M, {classes}], and M different rows of the {images} support images."
        )


def scores_of(probabilities: Tensor, labels: Tensor, balance: bool) -> HeldOutScores:
    """Give the probability of each image's own class, for probabilities `[M, C]`, labels `[M]`."""
    return HeldOutScores(probabilities.gather(1, labels[:, None])[:, 0], labels, balance)


def unknown_rule(cosines: Tensor, probabilities: Tensor, false_alarm: float) -> tuple[float, float]:
    """Give the threshold of familiarity, and what the largest probability counts in it.

    It counts so that its spread is `SHARE` of that of the cosines.

    Parameters
    ----------
    cosines
        `[M]`, of held-out images to the nearest class mean.
    probabilities
        `[M, C]`, of the same images.
    false_alarm
        The stated rate.
    """
    largest = probabilities.max(1).values
    weight = SHARE * float(cosines.std(correction=0) / largest.std(correction=0).clamp(min=SMALLEST_SPREAD))
    return threshold_at((cosines + weight * largest).double().numpy(), false_alarm), weight


def nearest_without(features: Tensor, labels: Tensor, rows: Tensor, classes: int) -> Tensor:
    """Give the cosine of some unit features to the nearest class mean, each left out of its own, `[M]`."""
    sums = class_sums(features, labels, classes)
    cosines = features[rows] @ F.normalize(sums, dim=-1).T
    others = F.normalize(sums[labels[rows]] - features[rows], dim=-1)
    own = (features[rows] * others).sum(1, keepdim=True)
    return cosines.scatter(1, labels[rows, None], own).max(1).values


def check_rate(argument: str, rate: object) -> float:
    """Give a rate of false alarms, more than 0 and less than 1."""
    if not 0 < check_number(argument, rate, 0) < 1:
        raise ParameterError(f"Got {argument}={rate}, expected a rate between 0 and 1, as 0.05.")
    return float(rate)  # type: ignore[arg-type]


def check_shots(rows: NDArray[np.int64], class_names: tuple[str, ...]) -> NDArray[np.int64]:
    """Give the images of each class; refuse a support set that nothing can be held out of.

    Raises
    ------
    DataError
        A class has no image, or none has two.
    """
    shots = np.bincount(rows, minlength=len(class_names))
    instead = "Add images, or leave out calibration and predict with unknown=PROBABILITY (--unknown 0.5)."
    if not shots.all():
        few = [class_names[row] for row in np.flatnonzero(shots == 0)][:5]
        raise DataError(f"Got no image of {few}: an image of a class is known by others of it. {instead}")
    if shots.max(initial=0) < 2:
        raise DataError(
            f"Got one image of each class: calibration holds one out and needs another. {instead}"
        )
    return shots


def class_means(features: Tensor, rows: Tensor, classes: int) -> Tensor:
    """Give the mean of each class's unit features, scaled to unit length: `[N, E]`, `[N]` to `[C, E]`."""
    return F.normalize(class_sums(features, rows, classes), dim=-1)


def class_sums(features: Tensor, rows: Tensor, classes: int) -> Tensor:
    """Add up the features of each class: `[N, E]`, `[N]` to `[C, E]`."""
    return features.new_zeros(classes, features.shape[1]).index_add_(0, rows, features)


def _held_out(rows: NDArray[np.int64], refit: Refit, count: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Classify each fold by a fit of the others: logits, rows, and how familiar the images are."""
    for kept, out in folds(rows, count):
        logits, learned, other = refit(kept, out)
        means = class_means(learned, torch.from_numpy(rows[kept]), int(rows.max()) + 1)
        yield logits, torch.from_numpy(rows[out]), (other @ means.T).max(1).values


def fit_temperature(logits: Tensor, labels: Tensor, balance: bool = False) -> float:
    """Give the temperature whose probabilities say most of the labels, for logits `[N, C]`, labels `[N]`.

    Its logarithm has a standard normal prior: where all of a few images are right, 0 would be best, and what
    the method itself says, a temperature of 1, is kept instead. Two dozen images outweigh it.
    With `balance`, classes of unequal numbers of images count alike, as `effective_number` images in all.
    """
    from scipy.optimize import minimize_scalar  # slow to import, and prediction does without

    logits, weights = logits.double(), None
    if balance and is_unequal(labels):
        weights = image_weights(labels) * effective_number(torch.bincount(labels)) / len(labels)
    low, high = map(math.log, TEMPERATURES)

    def unlikely(log_t: float) -> float:
        scaled = logits / math.exp(log_t)
        if weights is None:
            return float(F.cross_entropy(scaled, labels, reduction="sum")) + log_t**2 / 2
        return float(weights @ F.cross_entropy(scaled, labels, reduction="none")) + log_t**2 / 2

    found = minimize_scalar(unlikely, bounds=(low, high), method="bounded")
    return math.exp(float(found.x))

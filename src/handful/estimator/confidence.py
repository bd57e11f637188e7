"""How sure an answer is: a temperature for probabilities, and how familiar an image must look.

Both are found inside the support set, on images that were held out. The temperature is Guo et al.'s
(2017). Familiar is an image by its cosine to the nearest class mean of the support set, whatever the
method: on `mini`, the largest probability called images of other kinds more certain than known ones (an
area under the ROC curve of 0.1 to 0.6), and this told them apart (0.97 to 1.00). The threshold is
conformal (Vovk et al. 2005): if an image of a known class is drawn like those held out, it falls below
the threshold at the stated rate at most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from handful.balance import effective_number, image_weights, is_unequal
from handful.errors import (
    CheckpointError,
    DataError,
    ParameterError,
    check_integer,
    check_number,
    counted,
    unexpected,
)
from handful.heads import Head, check_logits, expect
from handful.selection import folds

Refit = Callable[[NDArray[np.int64], NDArray[np.int64]], tuple[Tensor, Tensor, Tensor]]
"""Fits on some images and classifies others, by their rows: logits `[M, C]` of the others, and unit features
of both, `[N, E]` and `[M, E]`."""
TEMPERATURES = (0.01, 100.0)
"""Of which the search is in between."""
MEANS = "calibration.means"
"""The class means among a checkpoint's tensors."""
UNKNOWN = "unknown"
"""What `predict` calls an image that is none of the classes; -1 where classes are integers."""


@dataclass(frozen=True)
class Calibration:
    """What was found inside the support set.

    Attributes
    ----------
    temperature
        Logits are divided by it before the softmax.
    threshold
        An image whose cosine to the nearest class mean is below it is unknown.
    false_alarm
        The stated rate: images of known classes that may be called unknown.
    images, folds
        How many images were held out, and in how many folds.
    means
        `[C, E]`, of each class's unit features, scaled to unit length.
    """

    temperature: float
    threshold: float
    false_alarm: float
    images: int
    folds: int
    means: Tensor = field(compare=False, repr=False)

    @property
    def can_tell_unknown(self) -> bool:
        """Whether there were enough images for the rate: else nothing is called unknown."""
        return self.threshold > -1

    @property
    def too_few(self) -> str:
        """Why nothing is called unknown, and how many images it takes; empty where something can be."""
        if self.can_tell_unknown:
            return ""
        few = f"{counted(self.images, 'held-out image')} {'is' if self.images == 1 else 'are'} too few"
        return (
            f"{few} to call any image unknown at a false-alarm rate of {self.false_alarm:g}: it takes "
            f"{images_needed(self.false_alarm)}. Calibrate on more images or at a higher rate, or give a "
            "probability: unknown=0.5 (--unknown 0.5)."
        )

    def facts(self) -> dict[str, float]:
        """The numbers alone, as a checkpoint's facts hold them; the means are among its tensors."""
        return {name: value for name, value in vars(self).items() if name != "means"}

    def familiarity(self, features: Tensor) -> Tensor:
        """Cosine of unit features `[N, E]` to the nearest class mean, `[N]`."""
        return (features @ self.means.T).max(1).values


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
        Whether classes count alike for the temperature, as they do for the method.
    """
    false_alarm, count = check_rate("false_alarm", false_alarm), check_integer("folds", count, 2)
    shots = check_shots(rows, class_names)
    parts = list(_held_out(rows, refit, min(count, int(shots.max()))))
    logits, truth, familiar = (torch.cat(part) for part in zip(*parts, strict=True))
    return Calibration(
        fit_temperature(logits, truth, balance),
        threshold_at(familiar.double().numpy(), false_alarm),
        false_alarm,
        len(truth),
        len(parts),
        class_means(features(), torch.from_numpy(rows)),
    )


def of_several_views(values: Tensor) -> str:
    """Say that a threshold found on features `[N, V, E]` of several views holds for such alone; else
    empty."""
    if values.shape[1] == 1:
        return ""
    return (
        f"Calibrated on means of {values.shape[1]} views of each image, which lie nearer to each other than "
        "single images do: of single images more will be called unknown than the false-alarm rate says (6 to "
        "16 % were, at 5 %). Calibrate on the images, or on features of one view each."
    )


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


def class_means(features: Tensor, rows: Tensor) -> Tensor:
    """Give the mean of each class's unit features, scaled to unit length: `[N, E]`, `[N]` to `[C, E]`."""
    sums = features.new_zeros(int(rows.max()) + 1, features.shape[1]).index_add_(0, rows, features)
    return F.normalize(sums, dim=-1)


def _held_out(rows: NDArray[np.int64], refit: Refit, count: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Classify each fold by a fit of the others: logits, rows, and how familiar the images are."""
    for kept, out in folds(rows, count):
        logits, learned, other = refit(kept, out)
        means = class_means(learned, torch.from_numpy(rows[kept]))
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


def threshold_at(scores: NDArray[np.float64], false_alarm: float) -> float:
    """Give the k-th smallest score, k = floor(rate (N + 1)); -1, below which no cosine falls, for k = 0.

    Of N + 1 scores in random order, one in k / (N + 1) is below the k-th smallest of the others.
    """
    k = math.floor(false_alarm * (len(scores) + 1))
    return float(np.sort(scores)[k - 1]) if k else -1.0


def images_needed(false_alarm: float) -> int:
    """Give how many held-out images it takes until `threshold_at` finds a threshold."""
    count = math.ceil(1 / false_alarm) - 1
    return count if math.floor(false_alarm * (count + 1)) else count + 1


def probabilities(logits: Tensor, calibration: Calibration | None) -> Tensor:
    """Turn logits `[..., C]` into probabilities, as calibrated."""
    temperature = calibration.temperature if calibration else 1.0
    return torch.softmax(check_logits(logits / temperature), -1)


class Answer(NamedTuple):
    """Probabilities `[N, C]`, and whether each image is of no known class, `[N]` of bool."""

    probabilities: Tensor
    is_unknown: Tensor


@torch.no_grad()
def classify(
    head: Head,
    calibration: Calibration | None,
    x: Tensor,
    unknown: float | str | None = None,
    read: Callable[[Tensor], Tensor] | None = None,
) -> Answer:
    """Classify what a head needs of N images; see `FewShotClassifier.predict` for `unknown`.

    `read` is the head's `reader()`, for a part of a series of images; without, they stand alone.
    """
    check_unknown(calibration, unknown)
    found = probabilities((read or head.read)(x), calibration)
    if calibration is None or unknown != "auto":
        return Answer(found, found.max(1).values < float(unknown or 0))
    return Answer(found, calibration.familiarity(head.image_features(x)) < calibration.threshold)


def check_unknown(calibration: Calibration | None, unknown: float | str | None) -> None:
    """Refuse what can't be asked of a classifier; see `FewShotClassifier.predict` for `unknown`."""
    if unknown == "auto" and calibration is None:
        raise ParameterError(
            "Got unknown='auto' of a classifier that is not calibrated. Call clf.calibrate(images, labels) "
            "on its support set (handful fit --calibrate 0.05), or give a probability: unknown=0.5."
        )
    if unknown is not None and unknown != "auto":
        check_number("unknown", unknown, 0)


def read_calibration(facts: Any, means: Tensor | None, classes: int, width: int | str) -> Calibration | None:
    """Check what a checkpoint says of a calibration.

    Raises
    ------
    CheckpointError
        It is no calibration.
    """
    if facts is None and means is None:
        return None
    if not isinstance(facts, dict) or means is None:
        raise CheckpointError("The calibration is damaged: its numbers or its class means are missing.")
    expect({MEANS: means}, {MEANS: (classes, width)})
    try:
        found = Calibration(**facts, means=means)
        check_number("threshold", found.threshold, -1)
        check_number("false_alarm", found.false_alarm, 0)
        if check_number("temperature", found.temperature, TEMPERATURES[0] / 2) > 2 * TEMPERATURES[1]:
            raise unexpected("temperature", found.temperature, f"a number within {TEMPERATURES}")
        for name in ("images", "folds"):
            check_integer(name, getattr(found, name), 0)
    except (TypeError, ParameterError) as error:
        raise CheckpointError(f"The calibration is damaged: {error}") from error
    return found

"""How sure an answer is: a temperature for probabilities, sets of classes, how familiar an image must look.

All are found inside the support set, on images that were held out (`calibrating`). The temperature is Guo et
al.'s (2017). How familiar an image looks is its cosine to the nearest class mean of the support set, and its
largest probability at half of its spread: that sum does on every kind of image what the better of the two
does. On features of CLIP the area under the ROC curve is .85 for classes that were left out (cosine .80,
probability .85) and .99 for images of other data sets (.98 and .91). The threshold is conformal (Vovk et al.
2005): if an image of a known class is drawn like those held out, it falls below the threshold at the stated
rate at most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from handful.errors import (
    CheckpointError,
    ParameterError,
    check_integer,
    check_number,
    counted,
    unexpected,
)
from handful.estimator.conformal import LABELS, SCORES, HeldOutScores, read_scores
from handful.heads import Head, check_logits, expect

FALSE_ALARM = 0.05
"""The rate where none is named."""
TEMPERATURES = (0.01, 100.0)
"""Of which the search is in between."""
PREFIX = "calibration."
"""What names of a checkpoint's tensors start with that belong to a calibration."""
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
        An image that looks less familiar is unknown; see `familiarity`.
    false_alarm
        The stated rate: images of known classes that may be called unknown.
    images, folds
        How many images were held out, and in how many folds.
    means
        `[C, E]`, of each class's unit features, scaled to unit length.
    probability_weight
        What the largest probability counts beside the cosine; 0 in what earlier versions saved.
    scores
        What prediction sets are made from; None in what earlier versions saved.
    """

    temperature: float
    threshold: float
    false_alarm: float
    images: int
    folds: int
    means: Tensor = field(compare=False, repr=False)
    probability_weight: float = 0.0
    scores: HeldOutScores | None = field(default=None, compare=False, repr=False)

    @property
    def can_tell_unknown(self) -> bool:
        """Whether there were enough images for the rate: else nothing is called unknown."""
        return self.threshold > -1

    @property
    def too_few(self) -> str:
        """Why nothing is called unknown, and how many images it takes; empty where something can be."""
        if self.can_tell_unknown:
            return ""
        if self.images >= images_needed(self.false_alarm):
            return (
                "The fit held out images for probabilities alone. Call clf.calibrate(images, labels) on the "
                "support set, or give a probability: unknown=0.5 (--unknown 0.5)."
            )
        few = f"{counted(self.images, 'held-out image')} {'is' if self.images == 1 else 'are'} too few"
        return (
            f"{few} to call any image unknown at a false-alarm rate of {self.false_alarm:g}: it takes "
            f"{images_needed(self.false_alarm)}. Calibrate on more images or at a higher rate, or give a "
            "probability: unknown=0.5 (--unknown 0.5)."
        )

    def facts(self) -> dict[str, float]:
        """The numbers alone, as a checkpoint's facts hold them; the rest is among its tensors."""
        left_out = {"means", "scores"} | ({"probability_weight"} if not self.probability_weight else set())
        numbers = {name: value for name, value in vars(self).items() if name not in left_out}
        return numbers | ({} if self.scores is None else {"balance": self.scores.balance})

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps among its tensors."""
        return {MEANS: self.means} | ({} if self.scores is None else self.scores.tensors())

    def familiarity(self, features: Tensor, probabilities: Tensor) -> Tensor:
        """Cosine of unit features `[N, E]` to the nearest class mean, and `probability_weight` times the
        largest probability of `[N, C]`: `[N]`."""
        nearest = (features @ self.means.T).max(1).values
        return nearest + self.probability_weight * probabilities.max(1).values


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
    return at_temperature(logits, calibration.temperature if calibration else 1.0)


def at_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Give the softmax of logits `[..., C]` over a temperature; refuse what is not finite."""
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
    familiarity = calibration.familiarity(head.image_features(x), found)
    return Answer(found, familiarity < calibration.threshold)


def check_unknown(calibration: Calibration | None, unknown: float | str | None) -> None:
    """Refuse what can't be asked of a classifier; see `FewShotClassifier.predict` for `unknown`."""
    if unknown == "auto" and calibration is None:
        raise ParameterError(
            "Got unknown='auto' of a classifier that is not calibrated. Call clf.calibrate(images, labels) "
            "on its support set (handful fit --calibrate 0.05), or give a probability: unknown=0.5."
        )
    if unknown is not None and unknown != "auto":
        check_number("unknown", unknown, 0)


def read_calibration(
    facts: Any, tensors: Mapping[str, Tensor], classes: int, width: int | str
) -> Calibration | None:
    """Check what a checkpoint says of a calibration, in its facts and its tensors.

    Raises
    ------
    CheckpointError
        It is no calibration.
    """
    if facts is None and not tensors:
        return None
    means = tensors.get(MEANS)
    if not isinstance(facts, dict) or means is None or not set(tensors) <= {MEANS, SCORES, LABELS}:
        raise CheckpointError("The calibration is damaged: its numbers or its class means are missing.")
    expect({MEANS: means}, {MEANS: (classes, width)})
    facts = dict(facts)
    scores = read_scores(facts, tensors, classes)
    try:
        found = Calibration(**facts, means=means, scores=scores)
        check_number("threshold", found.threshold, -1)
        check_number("false_alarm", found.false_alarm, 0)
        check_number("probability_weight", found.probability_weight, 0)
        if check_number("temperature", found.temperature, TEMPERATURES[0] / 2) > 2 * TEMPERATURES[1]:
            raise unexpected("temperature", found.temperature, f"a number within {TEMPERATURES}")
        for name in ("images", "folds"):
            check_integer(name, getattr(found, name), 0)
    except (TypeError, ParameterError) as error:
        raise CheckpointError(f"The calibration is damaged: {error}") from error
    return found

"""Prediction sets: the classes that an image may be of, so that its own is among them at a stated rate.

Split conformal prediction (Vovk et al. 2005) with the score of Sadinle et al. (2019, "least ambiguous sets"):
a class is in the set unless its probability is among the lowest that held-out images had for their own class.
If an image is drawn like those that were held out, its class is in its set at least at the stated coverage.
Held-out images were classified by fits of a few images less, so coverage is rather above than below it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from handful.balance import class_weighting, is_unequal
from handful.errors import CheckpointError, ParameterError, check_number, unexpected
from handful.heads import expect

By = Literal["all", "class", "auto"]
Empty = Literal["none", "best"]
COVERAGE = 0.9
"""Where none is named."""
SCORES, LABELS = "calibration.scores", "calibration.labels"
"""Names among a checkpoint's tensors."""
ROUNDING = 1e-9
"""Share of the images by which sums of weights may be off."""


@dataclass(frozen=True)
class HeldOutScores:
    """What held-out images say of how low the probability of an image's own class can be.

    Attributes
    ----------
    probabilities
        `[M]`, of the true class of each, by a fit that had not seen the image, as calibrated.
    labels
        `[M]` int64, that class, as a row of the class names.
    balance
        Whether classes are to count alike where unequal numbers of images were held out.
    """

    probabilities: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    balance: bool = True

    def counts(self, classes: int) -> Tensor:
        """Held-out images of each class, `[C]`."""
        return torch.bincount(self.labels, minlength=classes)

    def weights(self, classes: int) -> Tensor:
        """What an image of each class weighs, `[C]` float64: as an average one where none was held out."""
        counts = self.counts(classes)
        if not (self.balance and is_unequal(self.labels)):
            return torch.ones(classes, dtype=torch.float64)
        return torch.where(counts > 0, class_weighting(counts), 1.0)

    def tensors(self) -> dict[str, Tensor]:
        """Give what a checkpoint keeps beside the class means."""
        return {SCORES: self.probabilities, LABELS: self.labels}


@dataclass(frozen=True)
class SetRule:
    """A rule for sets at one coverage.

    Attributes
    ----------
    coverage
        The stated share of images whose class is in their set.
    thresholds
        `[C]`: a class is in the set if its probability is not below its own.
    by
        `"all"` or `"class"`, whose scores a threshold is from.
    empty
        `"none"` leaves a set without any class as it is, `"best"` puts the most likely one in.
    """

    coverage: float
    thresholds: Tensor = field(compare=False)
    by: By = "all"
    empty: Empty = "none"

    def mask(self, probabilities: Tensor) -> Tensor:
        """Say which classes are in the sets, `[N, C]` of bool, for probabilities `[N, C]`."""
        inside = probabilities >= self.thresholds.to(probabilities.dtype)
        if self.empty == "best":
            best = probabilities.argmax(1, keepdim=True)
            inside = inside.scatter(1, best, inside.gather(1, best) | ~inside.any(1, keepdim=True))
        return inside

    def rows(self, probabilities: Tensor) -> list[list[int]]:
        """Give the classes of each set by their rows, the most likely first."""
        order = probabilities.argsort(dim=1, descending=True, stable=True)
        kept = self.mask(probabilities).gather(1, order)
        return [row[keep].tolist() for row, keep in zip(order, kept, strict=True)]


def set_rule(
    scores: HeldOutScores,
    class_names: Sequence[str],
    coverage: float = COVERAGE,
    by: By = "all",
    empty: Empty = "none",
) -> SetRule:
    """Give the rule for sets at a coverage.

    With alpha = 1 - coverage and held-out probabilities p_i of weights w_i, class c of probability p is in
    the set if its p-value is above alpha:

        (sum of w_i over p_i <= p, + w_c) / (sum of all w_i, + w_c) > alpha

    All weights are 1, which gives the k-th smallest p_i as threshold, k = floor(alpha (M + 1)); or, where
    `scores.balance` and classes are unequal, those of `handful.balance`, under which the coverage is that of
    the mean over classes (label shift: Podkopaev and Ramdas 2021, equation 8).

    Parameters
    ----------
    scores
        Of the images that were held out.
    class_names
        C names, for errors.
    coverage
        Between 0 and 1.
    by
        `"all"`: one threshold from all held-out images. `"class"`: one for each class from its own, so that
        the coverage holds in every class (Vovk 2012). `"auto"`: by class where every class has enough images.
    empty
        See `SetRule`.

    Raises
    ------
    ParameterError
        Too few images were held out for the coverage, or an argument is something else.
    """
    if not 0 < check_number("coverage", coverage, 0) < 1:
        raise unexpected("coverage", coverage, "a number between 0 and 1, as 0.9")
    for name, value, allowed in (("by", by, By), ("empty", empty, Empty)):
        if not isinstance(value, str) or value not in get_args(allowed):
            raise unexpected(name, value, f"one of {list(get_args(allowed))}")
    alpha = max(round(1 - coverage, 12), 1e-12)
    counts = scores.counts(len(class_names))
    if by == "auto":
        by = "class" if counts.min() >= _needed(alpha) else "all"
    if by == "class":
        _check_classes(counts, _needed(alpha), class_names, coverage)
        found = [_threshold(scores.probabilities[scores.labels == row], alpha) for row in range(len(counts))]
        return SetRule(coverage, torch.tensor(found, dtype=torch.float64), by, empty)
    weights = scores.weights(len(counts))
    own = weights[scores.labels]
    if bool((weights == 1).all()):
        if len(own) < _needed(alpha):
            raise _too_few(coverage, f"{len(own)} held-out images", f"{_needed(alpha)} of them", len(own))
    else:
        least = math.ceil(_exact(1 / alpha - 1) / int((counts > 0).sum()))
        _check_classes(torch.where(counts > 0, counts, least), least, class_names, coverage)
    order = scores.probabilities.argsort()
    below = own[order].cumsum(0)
    limits = alpha * (own.sum() + weights) - weights + ROUNDING * own.sum()
    places = torch.searchsorted(below, limits, right=True).clamp(max=len(own) - 1)
    return SetRule(coverage, scores.probabilities[order].double()[places], by, empty)


def can_state(scores: HeldOutScores, class_names: Sequence[str], coverage: float, by: By = "all") -> bool:
    """Whether enough images were held out for sets at a coverage."""
    try:
        set_rule(scores, class_names, coverage, by)
    except ParameterError:
        return False
    return True


def _threshold(probabilities: Tensor, alpha: float) -> float:
    """Give the k-th smallest of M probabilities, k = floor(alpha (M + 1)), which is 1 at least."""
    k = math.floor(_exact(alpha * (len(probabilities) + 1)))
    return float(probabilities.kthvalue(min(k, len(probabilities))).values)


def _exact(number: float) -> float:
    """Take a number that is whole but for rounding for a whole one."""
    return round(number) if math.isclose(number, round(number), rel_tol=ROUNDING) else number


def _needed(alpha: float) -> int:
    """Give how many held-out images it takes until any class can be left out of a set."""
    return math.ceil(_exact(1 / alpha)) - 1


def _check_classes(counts: Tensor, least: int, class_names: Sequence[str], coverage: float) -> None:
    """Refuse classes of which fewer images were held out than it takes."""
    few = (counts < least).nonzero()[:, 0].tolist()
    if few:
        shown = ", ".join(f"{class_names[row]!r} {int(counts[row])}" for row in few[:5])
        raise _too_few(coverage, f"so many held-out images of these classes: {shown}", f"{least} of each")


def _too_few(coverage: float, got: str, takes: str, images: int = 0) -> ParameterError:
    most = f" These can state {math.floor(1000 * images / (images + 1)) / 1000:g} at most." if images else ""
    return ParameterError(
        f"Got coverage={coverage:g} and {got}: it takes {takes}, for no class can be left out of a set "
        f"before.{most} Ask for less coverage, or calibrate on more images."
    )


def read_scores(facts: dict[str, Any], tensors: Mapping[str, Tensor], classes: int) -> HeldOutScores | None:
    """Take a checkpoint's held-out scores out of its facts and tensors; None where it has none.

    Raises
    ------
    CheckpointError
        They are damaged.
    """
    balance = facts.pop("balance", None)
    found = [tensors.get(name) for name in (SCORES, LABELS)]
    if balance is None and found == [None, None]:
        return None
    probabilities, labels = found
    if probabilities is None or labels is None or not isinstance(balance, bool):
        raise CheckpointError("The calibration is damaged: of its held-out scores some part is missing.")
    expect({"scores": probabilities, "labels": labels}, {"scores": ("M",), "labels": ("M",)})
    limits = (probabilities >= 0) & (probabilities <= 1) & (labels >= 0) & (labels < classes)
    if not len(labels) or not bool(limits.all()):
        raise CheckpointError("The calibration is damaged: expected probabilities, and rows of its classes.")
    return HeldOutScores(probabilities, labels, balance)

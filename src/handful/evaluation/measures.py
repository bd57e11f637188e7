"""Measures beside accuracy: by class, of one class, of sets, of images seen before, and of no class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from handful.errors import DataError, ParameterError, check_number, unexpected
from handful.estimator import FewShotClassifier, Fitted
from handful.estimator.conformal import COVERAGE, By, SetRule, can_state
from handful.estimator.seen import SUPPORT, VALIDATION, shorten
from handful.evaluation.answers import Answers
from handful.metrics import Interval, accuracy, beside, interval

BY_FAMILIARITY, BY_PROBABILITY = "familiarity", "probability"


@dataclass(frozen=True)
class ClassScore:
    """How one class did: its test images, and precision, recall and F1, 0 to 1, as scikit-learn has them.

    `recall_interval` holds 95 %, over images.
    """

    name: str
    images: int
    precision: float
    recall: float
    f1: float
    recall_interval: Interval


@dataclass(frozen=True)
class Confusion:
    """Images of one class that were called another."""

    truth: str
    predicted: str
    images: int


@dataclass(frozen=True)
class Mistake:
    """An image that was classified wrongly, and the probabilities of what it was called and of what it is."""

    image: str
    truth: str
    predicted: str
    probability: float
    truth_probability: float


@dataclass(frozen=True)
class Binary:
    """One class against the rest.

    Attributes
    ----------
    positive
        The class that is looked for.
    sensitivity, specificity
        Share of its images that were called it, and of the others that were not; None without such images.
    auc
        Area under the ROC curve of its probability; None where one side has no image.
    """

    positive: str
    sensitivity: float | None
    specificity: float | None
    auc: float | None


@dataclass(frozen=True)
class Seen:
    """Test images that the classifier has looked at before.

    Attributes
    ----------
    support, validation
        How many of them it learned from; and on how many others its hyper-parameters were chosen.
    others
        How many it has not seen.
    accuracy_on_others
        Accuracy on these; None without any.
    """

    support: int
    validation: int
    others: int
    accuracy_on_others: float | None

    @property
    def images(self) -> int:
        """How many it has looked at."""
        return self.support + self.validation


@dataclass(frozen=True)
class Unknown:
    """How well images of no class are known from those of a class.

    Attributes
    ----------
    rule
        `"familiarity"`: unknown is an image that looks less familiar than `calibrate` found.
        `"probability"`: one whose largest probability is below a number.
    threshold
        An image below it is called unknown.
    stated
        The rate of false alarms that `calibrate` promised; None by probability.
    known, unknown
        How many images of a class, and of none, there are.
    false_alarms
        Share of the known images that are called unknown.
    found
        Share of the unknown images that are called unknown; None without any.
    auroc
        Area under the ROC curve of what the rule looks at, 0.5 where it can't tell them; None without
        unknown images. It does not depend on the threshold.
    """

    rule: str
    threshold: float
    stated: float | None
    known: int
    unknown: int
    false_alarms: float
    found: float | None
    auroc: float | None
    false_alarms_interval: Interval
    found_interval: Interval | None


@dataclass(frozen=True)
class Sets:
    """How often prediction sets hold the class of an image, and how large they are; shares are 0 to 1.

    Attributes
    ----------
    stated, by
        The coverage that was asked for, and whether over all images or in every class.
    coverage, balanced_coverage
        Share of the images whose class is in their set; and the mean over the classes that have images.
    size
        Classes in a set, on average.
    singletons, empty
        Share of the sets that hold one class, and of those that hold none.
    coverage_interval, balanced_coverage_interval
        95 %, over images.
    """

    stated: float
    by: str
    coverage: float
    balanced_coverage: float
    size: float
    singletons: float
    empty: float
    coverage_interval: Interval
    balanced_coverage_interval: Interval


def measure_sets(rule: SetRule, answers: Answers, truth: NDArray[np.int64]) -> Sets:
    """Measure prediction sets on images of the classes."""
    inside = rule.mask(torch.from_numpy(answers.probabilities)).numpy()
    covered = inside[np.arange(len(truth)), truth]
    plain, balanced = (beside(covered, covered, groups) for groups in (None, truth))
    sizes = inside.sum(1)
    return Sets(
        rule.coverage, rule.by, plain.accuracy, balanced.accuracy, float(sizes.mean()),
        float((sizes == 1).mean()), float((sizes == 0).mean()),
        plain.accuracy_interval, balanced.accuracy_interval,
    )  # fmt: skip


def sets_rule(clf: FewShotClassifier, coverage: float | None, by: By) -> SetRule | None:
    """Give the rule that is measured; without a coverage `COVERAGE`, where the classifier can state it.

    Raises
    ------
    ParameterError
        A coverage was asked for, and it can't.
    """
    if coverage is not None:
        return clf.set_rule(coverage, by)
    scores = clf.calibration_ and clf.calibration_.scores
    if not scores or not can_state(scores, clf.class_names_, COVERAGE, by):
        return None
    return clf.set_rule(COVERAGE, by)


def class_scores(
    predicted: NDArray[np.int64], truth: NDArray[np.int64], names: Sequence[str]
) -> tuple[ClassScore, ...]:
    """Measure each class that has images."""
    from sklearn.metrics import precision_recall_fscore_support  # slow to import

    present = np.unique(truth)
    found = precision_recall_fscore_support(truth, predicted, labels=present, zero_division=0)
    rows = zip(present.tolist(), *(np.asarray(column).tolist() for column in found), strict=True)
    return tuple(
        ClassScore(names[row], count, precision, recall, f1, interval(recall, count))
        for row, precision, recall, f1, count in rows
    )


def confusion_matrix(
    predicted: NDArray[np.int64], truth: NDArray[np.int64], classes: int
) -> NDArray[np.int64]:
    """Count images by class and answer, `[C, C]`: rows are what they are, columns what they were called."""
    counts = np.bincount(truth * classes + predicted, minlength=classes**2)
    return counts.reshape(classes, classes)


def confusions(matrix: NDArray[np.int64], names: Sequence[str]) -> tuple[Confusion, ...]:
    """Give the pairs of classes that were confused, most often first."""
    wrong = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-wrong, axis=None, kind="stable")[: np.count_nonzero(wrong)]
    pairs = [divmod(int(place), len(names)) for place in order]
    return tuple(Confusion(names[one], names[other], int(wrong[one, other])) for one, other in pairs)


def mistakes(
    answers: Answers, truth: NDArray[np.int64], images: Sequence[str], names: Sequence[str]
) -> tuple[Mistake, ...]:
    """List the images that were classified wrongly, the surest first."""
    wrong = np.flatnonzero(answers.predicted != truth)
    order = wrong[np.argsort(-answers.probabilities[wrong, answers.predicted[wrong]], kind="stable")]
    return tuple(
        Mistake(
            images[row], names[is_], names[called],
            float(answers.probabilities[row, called]), float(answers.probabilities[row, is_]),
        )
        for row, is_, called in zip(order, truth[order], answers.predicted[order], strict=True)
    )  # fmt: skip


def binary(answers: Answers, truth: NDArray[np.int64], names: Sequence[str], row: int) -> Binary:
    """Measure one class, by its row, against the rest."""
    is_, called = truth == row, answers.predicted == row
    return Binary(
        names[row],
        float(called[is_].mean()) if is_.any() else None,
        float((~called)[~is_].mean()) if not is_.all() else None,
        area(answers.probabilities[:, row], is_),
    )


def area(scores: NDArray[Any], positive: NDArray[np.bool_]) -> float | None:
    """Give the area under the ROC curve; None where one side has no image."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(positive, scores)) if positive.any() and not positive.all() else None


def seen_before(
    fitted: Fitted, digests: Sequence[str], predicted: NDArray[np.int64], truth: NDArray[np.int64]
) -> Seen | None:
    """Look for test images that a fit has looked at; None where it keeps no digests."""
    if not fitted.digests:
        return None
    short = shorten(digests)
    support, validation = (set(fitted.digests.get(name, ())) - {""} for name in (SUPPORT, VALIDATION))
    learned = np.array([digest in support for digest in short])
    chosen = np.array([digest in validation for digest in short]) & ~learned
    others = ~(learned | chosen)
    count = int(others.sum())
    return Seen(
        int(learned.sum()), int(chosen.sum()), count,
        accuracy(predicted[others], truth[others]) if count else None,
    )  # fmt: skip


def check_rule(fitted: Fitted, rule: float | str | None) -> None:
    """Refuse a rule that this classifier can't follow.

    Raises
    ------
    ParameterError
        It is not calibrated, or the rule is neither `"auto"` nor a number.
    """
    if rule == "auto" and fitted.calibration is None:
        raise ParameterError(
            "Got images of no class, or unknown='auto', and a classifier that is not calibrated: it has no "
            "rule for what is unknown. Calibrate it (clf.calibrate(images, labels) on its support set, "
            "handful fit --calibrate 0.05), or give a probability: unknown=0.5 (--unknown 0.5)."
        )
    if rule is not None and rule != "auto":
        if isinstance(rule, str):
            raise unexpected("unknown", rule, "'auto', or a probability as 0.5")
        if check_number("unknown", rule, 0) > 1:
            raise unexpected("unknown", rule, "'auto', or a probability as 0.5")


def measure_unknown(fitted: Fitted, rule: float | str, known: Answers, unknown: Answers | None) -> Unknown:
    """Measure a rule on images of the classes, and on images of none."""
    by_familiarity = rule == "auto"
    calibration = fitted.calibration
    if by_familiarity and calibration is not None:
        threshold, stated = calibration.threshold, calibration.false_alarm
    else:
        threshold, stated = float(rule), None

    def scores(answers: Answers) -> NDArray[np.float64]:
        found = answers.familiarity if by_familiarity else answers.sureness
        if found is None:
            raise DataError("Got answers without familiarity: ask for it.")
        return found

    inside = scores(known)
    outside = np.empty(0) if unknown is None else scores(unknown)
    is_known = np.repeat([True, False], [len(inside), len(outside)])
    alarms = float((inside < threshold).mean())
    found = float((outside < threshold).mean()) if len(outside) else None
    return Unknown(
        BY_FAMILIARITY if by_familiarity else BY_PROBABILITY, threshold, stated, len(inside), len(outside),
        alarms, found, area(np.concatenate([inside, outside]), is_known),
        interval(alarms, len(inside)), None if found is None else interval(found, len(outside)),
    )  # fmt: skip

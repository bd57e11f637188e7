"""How good is a fitted classifier on labelled images that were kept apart, beside zero-shot?

Two accuracies: of images, and balanced, the mean over the classes that have images. On unequal classes the
first is mostly that of the largest class, so the second is said first.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handful import checkpoint
from handful.data import ImageSet
from handful.data.given import as_items
from handful.errors import DataError
from handful.estimator import FewShotClassifier
from handful.estimator.conformal import By
from handful.evaluation.answers import Answers, ask, zero_shot_beside
from handful.evaluation.inputs import Known, OtherClasses, read_known, read_positive
from handful.evaluation.measures import (
    BY_FAMILIARITY,
    BY_PROBABILITY,
    Binary,
    ClassScore,
    Confusion,
    Mistake,
    Seen,
    Sets,
    Unknown,
    binary,
    check_rule,
    class_scores,
    confusion_matrix,
    confusions,
    measure_sets,
    measure_unknown,
    mistakes,
    seen_before,
    sets_rule,
)
from handful.evaluation.notes import notes_on
from handful.metrics import Beside, beside
from handful.types import ImageLike, Labels

__all__ = [
    "BY_FAMILIARITY",
    "BY_PROBABILITY",
    "Binary",
    "ClassScore",
    "Confusion",
    "Evaluation",
    "Mistake",
    "Seen",
    "Sets",
    "Unknown",
    "evaluate",
]


@dataclass(frozen=True)
class Evaluation:
    """How a fitted classifier did on labelled images; accuracies and shares are 0 to 1.

    Attributes
    ----------
    balanced, plain
        Accuracy beside zero-shot's on the same images, the gain, and 95 % intervals: where every class that
        has images weighs alike, and where every image does.
    images, classes
        How many images there are, and how many classes the classifier knows.
    method, selection
        Of the classifier: its method, and how its hyper-parameters were chosen.
    class_names
        Its classes, in label order.
    class_scores
        Images, precision, recall and F1 of each class that has images.
    confusion
        `[C, C]`, images by class (rows) and by what they were called (columns), in label order.
    errors
        The images that were classified wrongly, the surest first.
    seen
        Which of the images the classifier has looked at before; None where it keeps no digests: it was saved
        by an older version, or learned from no image.
    binary
        One class against the rest, where there are two or a positive one was named.
    unknown
        How well images of no class are known, where it was asked for.
    sets
        How often prediction sets hold the class of an image, where the classifier can give any.
    left_out
        Images of classes that the classifier does not know, by class, where these were left out.
    notes
        What to know of the figures, a sentence each.
    """

    balanced: Beside
    plain: Beside
    images: int
    classes: int
    method: str
    selection: str
    class_names: tuple[str, ...]
    class_scores: tuple[ClassScore, ...]
    confusion: NDArray[np.int64] = field(compare=False, repr=False)
    errors: tuple[Mistake, ...] = field(repr=False)
    seen: Seen | None = None
    binary: Binary | None = None
    unknown: Unknown | None = None
    sets: Sets | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def accuracy(self) -> float:
        """Share of the images that are right."""
        return self.plain.accuracy

    @property
    def zero_shot(self) -> float:
        """Accuracy of the backbone with the class names alone."""
        return self.plain.other

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the accuracy on each class that has images."""
        return self.balanced.accuracy

    @property
    def per_class(self) -> dict[str, float]:
        """Accuracy on each class that has images, by its name."""
        return {score.name: score.recall for score in self.class_scores}

    @property
    def macro(self) -> dict[str, float]:
        """Precision, recall and F1, each the mean over the classes that have images."""
        names = ("precision", "recall", "f1")
        return {name: float(np.mean([getattr(one, name) for one in self.class_scores])) for name in names}

    @property
    def counts(self) -> tuple[int, int]:
        """Images of the smallest and of the largest class that has any."""
        found = [score.images for score in self.class_scores]
        return min(found), max(found)

    @property
    def confusions(self) -> tuple[Confusion, ...]:
        """The pairs of classes that were confused, most often first."""
        return confusions(self.confusion, self.class_names)

    def facts(self) -> dict[str, Any]:
        """Give all of it as JSON can hold it."""
        both, image = self.balanced, self.plain
        return {
            "accuracy": self.accuracy, "zero_shot": self.zero_shot, "gain": image.gain,
            "balanced_accuracy": both.accuracy, "balanced_zero_shot": both.other, "balanced_gain": both.gain,
            "intervals": {
                "accuracy": image.accuracy_interval, "zero_shot": image.other_interval,
                "gain": image.gain_interval, "balanced_accuracy": both.accuracy_interval,
                "balanced_zero_shot": both.other_interval, "balanced_gain": both.gain_interval,
            },
            "images": self.images, "classes": self.classes, "images_per_class": self.counts,
            "method": self.method, "selection": self.selection, "per_class": self.per_class,
            "class_scores": [asdict(one) for one in self.class_scores], "macro": self.macro,
            "class_names": self.class_names, "confusion": self.confusion.tolist(),
            "confusions": [asdict(one) for one in self.confusions],
            "errors": [asdict(one) for one in self.errors],
            **{name: value and asdict(value) for name in ("seen", "binary", "unknown", "sets")
               for value in [getattr(self, name)]},
            "left_out": self.left_out, "notes": self.notes,
        }  # fmt: skip

    def record(self, folder: str | Path, data: str | Path) -> bool:
        """Write the score into a saved classifier and its card, the data by the last two parts of its path.

        A score on images that the classifier has looked at is marked there with their number.

        Returns
        -------
        bool
            Whether the card has it: one that a person wrote is left as it is.
        """
        score = {
            "data": "/".join(Path(data).absolute().parts[-2:]), "images": self.images,
            "accuracy": self.accuracy, "zero_shot": self.zero_shot,
            "balanced_accuracy": self.balanced.accuracy, "balanced_zero_shot": self.balanced.other,
            "seen": None if self.seen is None else self.seen.images,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        }  # fmt: skip
        return checkpoint.record_score(Path(folder), score)


def evaluate(
    clf: FewShotClassifier,
    images: ImageSet | Sequence[ImageLike],
    labels: Labels | None = None,
    *,
    other_classes: OtherClasses = "raise",
    unknown: float | str | None = None,
    unknown_images: Sequence[ImageLike] | None = None,
    positive: str | None = None,
    coverage: float | None = None,
    by: By = "all",
) -> Evaluation:
    """Score a fitted classifier on images of its classes, beside zero-shot.

    Parameters
    ----------
    clf
        A fitted classifier, with its backbone.
    images, labels
        An `ImageSet`; or paths, PIL images or byte arrays, with labels as `fit` takes them.
    other_classes
        What is done with images of classes that the classifier does not know: `"raise"` refuses them,
        `"skip"` leaves them out and counts them, `"unknown"` takes them for images of no class, where a rule
        is measured.
    unknown
        The rule that is measured: `"auto"` as calibrated, or a probability; see `predict`. None: none, or
        `"auto"` where there are `unknown_images`.
    unknown_images
        Images of no class.
    positive
        A class that is measured against the rest. Of two classes it is the second, in label order, as
        scikit-learn takes it, unless the other one is named.
    coverage, by
        Of the prediction sets that are measured; see `predict_set`. Without a coverage 0.9, where enough
        images were held out for it.

    Raises
    ------
    DataError
        A class of the images is not one of the classifier's, or none of them is.
    UnreadableImages
        Some can't be read.
    ParameterError
        The rule is `"auto"`, or a coverage is asked for, and the classifier is not calibrated.
    """
    fitted = clf.fitted_
    rule = "auto" if unknown is None and unknown_images is not None else unknown
    check_rule(fitted, rule)
    row, rule_of_sets = read_positive(clf, positive), sets_rule(clf, coverage, by)
    known = read_known(clf, images, labels, other_classes)
    outside = list(as_items(unknown_images)) if unknown_images is not None else []
    if unknown_images is not None and not outside:
        raise DataError("Got no image among unknown_images, expected at least one.")
    left_out = {name: len(of) for name, of in known.others.items()}
    if other_classes == "unknown" and rule is not None:
        outside += [item for of in known.others.values() for item in of]
        left_out = {}
    answers = ask(clf, known.items, zero_shot_beside(clf), familiar=rule == "auto")
    others = ask(clf, outside, familiar=rule == "auto") if outside else None
    found = None if rule is None else measure_unknown(fitted, rule, answers, others)
    sets = None if rule_of_sets is None else measure_sets(rule_of_sets, answers, known.truth)
    return _summary(clf, known, answers, row, found, sets, left_out)


def _summary(
    clf: FewShotClassifier,
    known: Known,
    answers: Answers,
    positive: int | None,
    unknown: Unknown | None,
    sets: Sets | None,
    left_out: dict[str, int],
) -> Evaluation:
    """Measure answers."""
    names, truth, predicted = clf.class_names_, known.truth, answers.predicted
    right, plain = predicted == truth, answers.zero_shot == truth
    scores = class_scores(predicted, truth, names)
    seen = seen_before(clf.fitted_, answers.digests, predicted, truth)
    balanced = beside(right, plain, truth)
    return Evaluation(
        balanced,
        beside(right, plain),
        len(truth),
        len(names),
        clf.fitted_.method,
        clf.selection_,
        names,
        scores,
        confusion_matrix(predicted, truth, len(names)),
        mistakes(answers, truth, known.names, names),
        seen,
        None if positive is None else binary(answers, truth, names, positive),
        unknown,
        sets,
        left_out,
        notes_on(scores, len(names), seen, unknown, left_out, balanced, sets),
    )

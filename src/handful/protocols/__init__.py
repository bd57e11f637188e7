"""Recipes of evaluation, as the field's articles published them.

A protocol gives draws (`handful.protocols.draws`): what is learned on, what is tested, and among which
names. `fit` and `answer` are all that a method does on one; `handful.bench` runs them, keeps what came out
and `handful.report` writes it up.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray
from sklearn.base import clone

from handful.data import ImageSet
from handful.data.names import name_key
from handful.estimator import FewShotClassifier
from handful.names import PROTOCOLS, SEEDS, SHOTS
from handful.protocols.coop_probe import coop_probe_draw, coop_probe_draws
from handful.protocols.draws import (
    Draw,
    base_to_new,
    cross_category,
    cross_dataset,
    domain_shift,
    few_shot_draws,
)
from handful.protocols.regions import RegionScore, region_classification, region_features

__all__ = [
    "PROTOCOLS",
    "SEEDS",
    "SHOTS",
    "Draw",
    "RegionScore",
    "answer",
    "base_to_new",
    "coop_probe_draw",
    "coop_probe_draws",
    "cross_category",
    "cross_dataset",
    "domain_shift",
    "few_shot_draws",
    "fit",
    "region_classification",
    "region_features",
]


def fit(method: FewShotClassifier, draw: Draw) -> FewShotClassifier:
    """Fit a clone on a draw's support set. It is given no test image, but for `selection="oracle"`."""
    support = draw.everyone if draw.everyone is not None and method.online else draw.support
    seen = {"val": draw.validation, "oracle": next(iter(draw.tests.values()))}.get(method.selection)
    if seen is not None:
        names = set(support.class_names)
        seen = seen.of_classes([row for row, name in enumerate(seen.class_names) if name in names])
    return clone(method).fit(support, validation=seen)


def answer(clf: FewShotClassifier, images: ImageSet) -> NDArray[Any]:
    """Give logits `[N, C]` of images among their set's own class names.

    Raises
    ------
    ParameterError
        The method knows its classes from their images, and the set has others.
    """
    known = {name_key(name): row for row, name in enumerate(clf.class_names_)}
    rows = [known.get(name_key(name), -1) for name in images.class_names]
    if min(rows) < 0:
        return clf.with_classes(images.class_names).decision_function(images)
    logits: NDArray[Any] = clf.decision_function(images)
    return logits[:, rows]

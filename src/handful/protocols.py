"""Recipes of evaluation: few-shot curves (methods.md §9.2), base to new (§9.4), CoOp's linear probe
(§1.2), regions (§6.3)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.base import clone
from torch import Tensor

from handful.backbones import Backbone
from handful.data import ImageSet, few_shot
from handful.data.regions import Regions
from handful.data.splits import draw as draw_rows
from handful.errors import DataError
from handful.estimator import FewShotClassifier
from handful.features import encode
from handful.methods import LogisticProbe, Refiner, refine
from handful.metrics import Cell
from handful.prompts import class_weights

SHOTS = (1, 2, 4, 8, 16)
SEEDS = (1, 2, 3)


@dataclass(frozen=True)
class Draw:
    """One support set, and the test sets that what is learned on it is scored on."""

    shots: int
    seed: int
    support: ImageSet
    tests: dict[str, ImageSet]


def few_shot_draws(
    train: ImageSet, test: ImageSet, shots: Sequence[int] = SHOTS, seeds: Sequence[int] = SEEDS
) -> Iterator[Draw]:
    """Learn on CoOp's draws of `train`, test on the whole of `test` (methods.md §9.2)."""
    for count in shots:
        for seed in seeds:
            yield Draw(count, seed, few_shot(train, count, seed), {"test": test})


def base_to_new(
    train: ImageSet, test: ImageSet, shots: Sequence[int] = (16,), seeds: Sequence[int] = SEEDS
) -> Iterator[Draw]:
    """Learn on the first half of the classes; test it, and the other half among its own names (§9.4).

    The draw is of all classes, as published, and the halves are cut afterwards.
    """
    half = (len(train.class_names) + 1) // 2
    base, new = range(half), range(half, len(train.class_names))
    tests = {"base": test.of_classes(base), "new": test.of_classes(new)}
    for draw in few_shot_draws(train, test, shots, seeds):
        yield Draw(draw.shots, draw.seed, draw.support.of_classes(base), tests)


def measure(name: str, method: FewShotClassifier, draw: Draw) -> Iterator[Cell]:
    """Fit a clone of a method, and score it on every test set, those of other class names too.

    Raises
    ------
    ParameterError
        The method knows its classes from their images, and a test set has others.
    """
    start = time.perf_counter()
    clf = clone(method).fit(draw.support)
    seconds = time.perf_counter() - start
    for test, images in draw.tests.items():
        same = set(images.class_names) <= set(clf.class_names_)
        score = (clf if same else clf.with_classes(images.class_names)).score(images)
        yield Cell(name, draw.shots, draw.seed, score, seconds, clf.selection_, test)


def few_shot_curves(
    methods: Mapping[str, FewShotClassifier],
    train: ImageSet,
    test: ImageSet,
    shots: Sequence[int] = SHOTS,
    seeds: Sequence[int] = SEEDS,
) -> Iterator[Cell]:
    """Fit every method on every draw, and score it on the whole test split.

    Parameters
    ----------
    methods
        Unfitted estimators by name; each cell fits a clone.
    train, test
        Draws come from `train` (CoOp's, for each seed); `test` is only scored.
    shots, seeds
        Images per class, and the draws of each.
    """
    for draw in few_shot_draws(train, test, shots, seeds):
        for name, method in methods.items():
            yield from measure(name, method, draw)


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


BOXES = 1024
"""Crops in memory at a time."""
ZOOMS = (1.0, 1.5)
"""How much of a box's surroundings its two crops hold, as in ViLD (Gu et al. 2022, §3.2)."""


@dataclass(frozen=True)
class RegionScore:
    """How many boxes of a group of classes are told right, 0 to 1."""

    method: str
    group: str
    classes: int
    boxes: int
    accuracy: float


def region_features(backbone: Backbone, regions: Regions) -> Tensor:
    """Give a unit vector for each box, `[N, E]`: the mean of its crops' unit features."""
    parts = [
        torch.stack([encode(backbone, some.crops(zoom), cache=False).directions() for zoom in ZOOMS]).mean(0)
        for some in (regions[start : start + BOXES] for start in range(0, len(regions), BOXES))
    ]
    return F.normalize(torch.cat(parts), dim=-1)


def region_classification(
    backbone: Backbone,
    train: Regions,
    test: Regions,
    refiner: Refiner,
    *,
    shots: int = 10,
    seed: int = 1,
    rare: int = 10,
    frequent: int = 100,
    templates: str | Sequence[str] = "default",
) -> list[RegionScore]:
    """Tell ground-truth boxes by class weights as they are, and refined by a few boxes of each class.

    What an open-vocabulary detector's head does with a box that it found (methods.md §6.3): the
    detector is left out, so this measures the class weights alone.

    Parameters
    ----------
    backbone
        Whose space the class weights are in.
    train, test
        Boxes of the same classes; `shots` of each class (all, where there are fewer) from `train`
        refine its weight, which may have none.
    refiner
        The Meta-Adapter's network, trained on other classes.
    seed
        Of the draw.
    rare, frequent
        As LVIS counts: a class with at most `rare` training boxes is rare, one with more than
        `frequent` is frequent, others are common.

    Returns
    -------
    scores
        For each method and group: micro accuracy over the boxes of its classes.
    """
    if not len(train) or not len(test):
        raise DataError(f"Got {len(train)} training and {len(test)} test boxes, expected some of each.")
    if train.class_names != test.class_names:
        raise DataError("Got training and test boxes of different classes, expected the same categories.")
    text = class_weights(backbone, train.class_names, templates).cpu()
    rows, _ = draw_rows(train.labels, shots, seed)
    support, labels = region_features(backbone, train[rows]), torch.as_tensor(train.labels[rows])
    weights = {"zero-shot": text, "meta-adapter": refine(text, support, refiner, labels)}
    x, truth = region_features(backbone, test), torch.as_tensor(test.labels)
    counts = torch.bincount(torch.as_tensor(train.labels), minlength=len(text))
    groups = {
        "rare": counts <= rare,
        "common": (counts > rare) & (counts <= frequent),
        "frequent": counts > frequent,
        "all": counts >= 0,
    }
    scores = []
    for method, classifier in weights.items():
        right = (x @ classifier.T).argmax(1) == truth
        for group, members in groups.items():
            mine = members[truth]
            share = float(right[mine].double().mean()) if mine.any() else float("nan")
            scores.append(RegionScore(method, group, int(members.sum()), int(mine.sum()), share))
    return scores

"""Draws: what is learned on, what is tested, and among which names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from handful.backbones import Backbone
from handful.data import Dataset, ImageSet, few_shot, halves
from handful.errors import DataError
from handful.methods import ZeroShot
from handful.metrics import per_class_accuracy
from handful.names import SEEDS, SHOTS

EASY = 0.7
"""Share of the classes, the easiest for zero-shot, that are base in Meta-Adapter's protocol."""


@dataclass(frozen=True)
class Draw:
    """One support set, and the test sets that what is learned on it is scored on.

    Attributes
    ----------
    tests
        By name. The class names of each are those its images are classified among; they need
        not be the support set's.
    everyone
        In cross-category, the support of all classes: for methods that take classes in with no training.
    validation
        For `selection="val"`.
    """

    shots: int
    seed: int
    support: ImageSet
    tests: dict[str, ImageSet]
    everyone: ImageSet | None = None
    validation: ImageSet | None = None


def few_shot_draws(
    train: ImageSet,
    test: ImageSet,
    shots: Sequence[int] = SHOTS,
    seeds: Sequence[int] = SEEDS,
    val: ImageSet | None = None,
) -> Iterator[Draw]:
    """Learn on CoOp's draws of `train`, test on the whole of `test` (Zhou et al. 2022a, §4.1)."""
    return _draws(train, {"test": test}, shots, seeds, val)


def _draws(
    train: ImageSet,
    tests: dict[str, ImageSet],
    shots: Sequence[int],
    seeds: Sequence[int],
    val: ImageSet | None = None,
) -> Iterator[Draw]:
    for count in shots:
        for seed in seeds:
            yield Draw(count, seed, few_shot(train, count, seed), tests, validation=val)


def base_to_new(
    train: ImageSet, test: ImageSet, shots: Sequence[int] = (16,), seeds: Sequence[int] = SEEDS
) -> Iterator[Draw]:
    """Learn on the first half of the classes; test it, and the other half among its own names.

    Zhou et al. 2022b, §4.1. The draw is of all classes, as published, and the halves are cut afterwards.
    """
    if test.class_names != train.class_names or len(train.class_names) < 2:
        raise DataError(
            f"Got test classes {list(test.class_names[:4])}, expected those of train, in its order, at least "
            f"2: {list(train.class_names[:4])}."
        )
    tests = dict(zip(("base", "new"), halves(test), strict=True))
    for draw in few_shot_draws(train, test, shots, seeds):
        yield replace(draw, support=halves(draw.support)[0], tests=tests)


def cross_dataset(
    source: Dataset, targets: Sequence[Dataset], shots: Sequence[int] = (16,), seeds: Sequence[int] = SEEDS
) -> Iterator[Draw]:
    """Learn on all classes of one data set, test on others, each among its own names.

    Zhou et al. 2022b, §4.2. The source is tested too, where it has a test part.
    """
    tests = _own_test(source) | {data.name: data.part("test") for data in targets}
    return _draws(source.part("train"), tests, shots, seeds)


def _own_test(source: Dataset) -> dict[str, ImageSet]:
    return {source.name: source.parts["test"]} if "test" in source.parts else {}


def domain_shift(
    source: Dataset, targets: Sequence[Dataset], shots: Sequence[int] = (16,), seeds: Sequence[int] = SEEDS
) -> Iterator[Draw]:
    """Learn on one domain, test on others that share classes, each among those it has.

    Zhou et al. 2022a, §4.2, and 2022b, §4.3.

    Raises
    ------
    DataError
        A target shares fewer than two class names with the source.
    """
    known, tests = set(source.part("train").class_names), _own_test(source)
    for target in targets:
        images = target.part("test")
        shared = [row for row, name in enumerate(images.class_names) if name in known]
        if len(shared) < 2:
            raise DataError(
                f"{target.name} shares {len(shared)} class names with {source.name}, expected at least 2: "
                "domains have the same classes. For other classes there is cross-dataset."
            )
        tests[target.name] = images.of_classes(shared)
    return _draws(source.part("train"), tests, shots, seeds)


def cross_category(
    backbone: Backbone,
    data: Dataset,
    shots: Sequence[int] = (16,),
    seeds: Sequence[int] = SEEDS,
) -> Iterator[Draw]:
    """Learn on the classes that are easy for zero-shot, test the hard ones among all.

    Song et al. 2023, cross-category generalization. The 70 % of the classes with the highest zero-shot
    accuracy on the training images are base. A method that takes classes in with no training is given
    images of all; others learn on base. "new" is hard images among all names, as Meta-Adapter counts; "new
    alone" among the hard names, as CoCoOp does.
    """
    train, test = data.part("train"), data.part("test")
    zero = ZeroShot(backbone, templates=data.templates).fit(class_names=train.class_names)
    rows = zero.logits(train)[:, zero.match(train.class_names)].argmax(1)
    right = per_class_accuracy(rows, train.labels, len(train.class_names))
    order = np.argsort(-np.nan_to_num(right), kind="stable").tolist()
    count = int(EASY * len(order))
    base, new = sorted(order[:count]), sorted(order[count:])
    tests = {
        "base": test[np.flatnonzero(np.isin(test.labels, base))],
        "new": test[np.flatnonzero(np.isin(test.labels, new))],
        "new alone": test.of_classes(new),
    }
    for draw in few_shot_draws(train, test, shots, seeds):
        yield Draw(draw.shots, draw.seed, draw.support.of_classes(base), tests, draw.support)

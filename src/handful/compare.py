"""For somebody with a folder of images: which method, is it worth it, and how good is it?

`compare` needs no test set: repeated cross-validation inside the images at hand. Every image is classified by
classifiers that were not fitted on it, in the same folds for every method, so methods are compared image by
image. `handful.evaluation` scores one that is fitted on images that were kept apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from handful.backbones import Backbone
from handful.data import ImageSet
from handful.errors import DataError, check_integer, unexpected
from handful.estimator import FewShotClassifier
from handful.methods import METHODS, find_method
from handful.protocols import answer
from handful.selection import folds

ZERO_SHOT = "zero-shot"
SLOW = ("coop", "cocoop", "mma", "fine-tuning")
"""Methods that train inside a tower: minutes for each fold; only if asked for by name."""
SURE = 1.96
"""Standard errors of a 95 % interval."""


@dataclass(frozen=True)
class Rank:
    """How a method did: accuracy 0 to 1, and its half 95 % interval over images.

    Attributes
    ----------
    gain, gain_error
        Of accuracy over zero-shot, image by image, and its half 95 % interval.
    selection
        How its hyper-parameters were chosen, inside each fold.
    seconds
        A fit takes, in the median.
    """

    method: str
    accuracy: float
    error: float
    gain: float
    gain_error: float
    selection: str
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """Methods, the best first, and what to do."""

    ranks: list[Rank]
    best: str
    advice: str
    images: int
    classes: int
    repeats: int
    folds: int


def sensible(backbone: Backbone, names: Sequence[str] | None = None) -> dict[str, FewShotClassifier]:
    """Give unfitted methods by name; those that can, choose their parameters inside the support set."""
    chosen = [name for name in METHODS if name not in SLOW] if names is None else names
    found = {}
    for name in dict.fromkeys((ZERO_SHOT, *chosen)):
        clf = find_method(name)()
        own = {"backbone": backbone, "selection": "support"}
        found[name] = clf.set_params(**{key: value for key, value in own.items() if key in clf.get_params()})
    return found


def compare(
    methods: Mapping[str, FewShotClassifier],
    images: ImageSet,
    *,
    count: int = 4,
    repeats: int = 3,
    seed: int = 1,
    progress: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Compare methods on images alone, by repeated cross-validation.

    Intervals are over images, whose answers are averaged over the repeats; they know nothing of another
    draw of the images, so take them as the least there is.

    Parameters
    ----------
    methods
        Unfitted, by name; `"zero-shot"` among them.
    images
        At least two of each class.
    count, repeats, seed
        Folds, at most as many as the smallest class has images; how often, with other folds; of these.
    progress
        Takes what happens meanwhile.

    Raises
    ------
    DataError
        A class has fewer than two images.
    """
    if ZERO_SHOT not in methods:
        raise unexpected("methods", list(methods), "zero-shot among them, to compare with")
    counts = np.bincount(images.labels, minlength=len(images.class_names))
    least = int(counts.min(initial=len(images)))
    if least < 2:
        few = [images.class_names[row] for row in np.flatnonzero(counts < 2)][:5]
        raise DataError(
            f"Got classes with fewer than two images, {few}: one has to be left out to be classified. Add "
            "images, or fit a method that needs no choice: handful fit --method linear-probe."
        )
    count, repeats = min(check_integer("folds", count, 2), least), check_integer("repeats", repeats, 1)
    right = {name: np.zeros((repeats, len(images))) for name in methods}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    selection: dict[str, str] = {}
    for repeat in range(repeats):
        order = np.random.default_rng([seed, repeat]).permutation(len(images))
        mixed = images[order]
        for name, method in methods.items():
            progress(f"repeat {repeat + 1} of {repeats}: {name}")
            for rows, out in folds(np.asarray(mixed.labels), count):
                start = time.perf_counter()
                clf = clone(method).fit(mixed[rows])
                seconds[name].append(time.perf_counter() - start)
                selection[name] = clf.selection_
                predicted = answer(clf, mixed[out]).argmax(1)
                right[name][repeat, order[out]] = predicted == mixed.labels[out]
    ranks = [
        Rank(
            name, *_interval(right[name].mean(0)),
            *_interval(right[name].mean(0) - right[ZERO_SHOT].mean(0)),
            selection[name], float(np.median(seconds[name])),
        )
        for name in methods
    ]  # fmt: skip
    ranks.sort(key=lambda one: (-one.accuracy, one.seconds))
    means = {name: values.mean(0) for name, values in right.items()}
    best = ranks[0].method
    advice = advise(ranks, means, len(images) / max(len(images.class_names), 1))
    if not _better(means[best], means[ZERO_SHOT]):
        best = ZERO_SHOT
    return Comparison(ranks, best, advice, len(images), len(images.class_names), repeats, count)


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Mean over images, and its half 95 % interval."""
    return float(values.mean()), float(SURE * values.std(ddof=1) / len(values) ** 0.5)


def _better(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    gain, error = _interval(one - other)
    return gain > error


def advise(ranks: Sequence[Rank], means: Mapping[str, NDArray[np.float64]], shots: float) -> str:
    """Say in a sentence or two what to do."""
    best = ranks[0]
    zero = next(one for one in ranks if one.method == ZERO_SHOT)
    shown = f"{100 * best.accuracy:.1f} ± {100 * best.error:.1f} %"
    if best.method == ZERO_SHOT or not _better(means[best.method], means[ZERO_SHOT]):
        other = (
            "nothing is better" if best.method == ZERO_SHOT else f"{best.method}, {shown}, is within noise"
        )
        return (
            f"Adaptation does not help here: zero-shot has {100 * zero.accuracy:.1f} ± "
            f"{100 * zero.error:.1f} %, and {other}."
        )
    alike = [
        one.method for one in ranks[1:]
        if one.method != ZERO_SHOT and not _better(means[best.method], means[one.method])
    ]  # fmt: skip
    text = (
        f"{best.method} is best, {shown}; zero-shot has {100 * zero.accuracy:.1f} %. The gain is "
        f"{100 * best.gain:.1f} ± {100 * best.gain_error:.1f} points."
    )
    if alike:
        text += f" With {shots:.3g} images per class the difference to {_listed(alike)} is within noise."
    return text


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"

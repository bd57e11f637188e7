"""For somebody with a folder of images: which method, is it worth it, and how sure is that?

`compare` needs no test set: one shot of every class is held out at a time, and classified by methods that
were fitted on the others, in the same folds for every method, so methods are compared image by image.
Classes count alike, however many images each has. `handful.evaluation` scores a classifier that is fitted,
on images that were kept apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import clone

from handful.backbones import Backbone
from handful.compare.advice import ZERO_SHOT, Comparison, Rank, advise, choose, notes_on, rank
from handful.compare.estimates import Estimate, estimate
from handful.data import ImageSet
from handful.errors import DataError, check_integer, unexpected
from handful.estimator import FewShotClassifier
from handful.estimator.noting import names_test
from handful.methods import find_method
from handful.protocols import answer
from handful.selection import folds

__all__ = ["Comparison", "Estimate", "Rank", "compare", "estimate", "sensible"]

TRIED = (
    "auto", "zero-shot", "linear-probe", "logistic-probe", "gda", "kernel-ridge", "tip-adapter",
    "tip-adapter-f", "meta-adapter",
)  # fmt: skip
"""Methods where none is named: of each kind the best that takes a second at most for a fold of 10 classes
of 16 images. Of the others `ape`, `linear-adapter`, `lp-plus-plus`, `ss-text` and `tda` are as quick;
`ape-t`, `taskres` and `cross-modal-probe` take a second or two, `prolip` and `text-tuning` three to five,
`clip-adapter` half a minute, and what trains inside a tower minutes."""
MOST_FOLDS = 16
"""Up to as many shots, one is held out at a time."""
FITS = 12
"""Of each method at least: few folds are repeated, with other images in them."""


def sensible(backbone: Backbone, names: Sequence[str] | None = None) -> dict[str, FewShotClassifier]:
    """Give unfitted methods by name, `TRIED` and zero-shot by default; those that can, choose their
    parameters inside the support set."""
    chosen = TRIED if names is None else names
    found = {}
    for name in dict.fromkeys((ZERO_SHOT, *chosen)):
        clf = find_method(name)()
        own = {"backbone": backbone, **({"selection": "support"} if clf.selects_on_support else {})}
        found[name] = clf.set_params(**{key: value for key, value in own.items() if key in clf.get_params()})
    return found


def compare(
    methods: Mapping[str, FewShotClassifier],
    images: ImageSet,
    *,
    count: int = MOST_FOLDS,
    repeats: int | None = None,
    seed: int = 1,
    progress: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Compare methods on images alone, by repeated cross-validation.

    Parameters
    ----------
    methods
        Unfitted, by name; `"zero-shot"` among them.
    images
        At least two of one class. A class with one is learned, and not measured.
    count
        Folds, at most as many as the largest class has images.
    repeats
        How often, with other folds; None: as often as gives 12 fits of each method.
    seed
        Of the folds.
    progress
        Takes what happens meanwhile.

    Raises
    ------
    DataError
        No class has two images.
    """
    if ZERO_SHOT not in methods:
        raise unexpected("methods", list(methods), "zero-shot among them, to compare with")
    labels = np.asarray(images.labels)
    sizes = np.bincount(labels, minlength=len(images.class_names))
    if sizes.max(initial=0) < 2:
        raise DataError(
            "Got no class with two images: one has to be held out to be classified. Add images, or fit a "
            "method that needs no choice: handful fit --method linear-probe."
        )
    count = min(check_integer("folds", count, 2), int(sizes.max()))
    repeats = max(round(FITS / count), 1) if repeats is None else check_integer("repeats", repeats, 1)
    trials = {name: Trial(method, np.full((repeats, len(images)), -1)) for name, method in methods.items()}
    for repeat in range(repeats):
        order = np.random.default_rng([seed, repeat]).permutation(len(images))
        for name, trial in trials.items():
            progress(f"repeat {repeat + 1} of {repeats}: {name}")
            for kept, held in folds(labels[order], count):
                trial.run(repeat, images, order[kept], order[held])
    measured = np.flatnonzero(sizes[labels] > 1)
    right = {name: (trial.predicted == labels)[:, measured].mean(0) for name, trial in trials.items()}
    ranks = rank(
        right,
        labels[measured],
        {name: trial.selection for name, trial in trials.items()},
        {name: float(np.median(trial.seconds)) for name, trial in trials.items()},
    )
    zero = torch.from_numpy(trials[ZERO_SHOT].predicted[0, measured])
    names = names_test(zero, torch.from_numpy(labels[measured]), len(sizes))
    trusting = [name for name, method in methods.items() if method.trusts_names]
    best = choose(ranks, trusting if names.say_nothing else ())
    return Comparison(
        ranks, best.method, advise(best, ranks), notes_on(sizes, images.class_names, names), len(images),
        len(sizes), int(sizes.min()), int(sizes.max()), repeats, count,
    )  # fmt: skip


@dataclass
class Trial:
    """A method, and the class that it gave each image, in each repeat `[R, N]`; -1 for none."""

    method: FewShotClassifier
    predicted: NDArray[np.int64]
    seconds: list[float] = field(default_factory=list)
    selection: str = ""

    def run(self, repeat: int, images: ImageSet, kept: NDArray[np.int64], held: NDArray[np.int64]) -> None:
        """Fit on some images, by their rows, and classify others."""
        start = time.perf_counter()
        clf = clone(self.method).fit(images[kept])
        self.seconds.append(time.perf_counter() - start)
        self.selection = clf.selection_
        self.predicted[repeat, held] = answer(clf, images[held]).argmax(1)

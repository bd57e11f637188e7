"""`handful demo`: the main job on real images, offline, in a few minutes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from sklearn.base import clone

from handful.backbones import Backbone, load_backbone
from handful.cli.digits import write_digits
from handful.data import ImageSet, few_shot
from handful.estimator import FewShotClassifier
from handful.methods import METHODS
from handful.protocols import SEEDS, SHOTS, few_shot_curves
from handful.report import accuracy_table, draw_curves
from handful.selection import folds

TEMPLATES = "default"
FOLDS = 4


def run_demo(folder: Path, out: Console, progress: Callable[[str], None]) -> None:
    """Compare the methods that fit in seconds on scikit-learn's digits, keep the best, and predict with it.

    Parameters
    ----------
    folder
        Where to put `digits/`, `curves.png` and `best/`.
    out
        Takes the results; `progress` takes what happens meanwhile.
    """
    start = time.perf_counter()
    progress("Writing scikit-learn's 1,797 handwritten digits to class folders")
    write_digits(folder / "digits")
    train, test = (ImageSet.from_folder(folder / "digits" / part) for part in ("train", "test"))
    backbone = load_backbone("mini")
    methods = {name: tuned(cls, backbone) for name, cls in METHODS.items() if not cls.trains}
    cells, total = [], len(methods) * len(SHOTS) * len(SEEDS)
    for cell in few_shot_curves(methods, train, test):
        cells.append(cell)
        if len(cells) % len(methods) == 0:
            progress(f"{cell.shots} shots, draw {cell.seed}: {len(cells)} of {total} fits done")
    title = "scikit-learn's digits, backbone mini (a demonstration model)"
    out.print(accuracy_table(cells, title))
    draw_curves(cells, folder / "curves.png", title)

    support = few_shot(train, max(SHOTS), seed=1)
    scores = {name: cross_validate(method, support) for name, method in methods.items()}
    best = max(scores, key=lambda name: scores[name])
    clf = clone(methods[best]).fit(support)
    clf.save(folder / "best")
    image = test.items[0]
    probabilities = clf.predict_proba([image])[0]
    row = int(probabilities.argmax())
    out.print(
        f"Best by cross-validation inside the {len(support)} support images (no test image seen): "
        f"{best}, {100 * scores[best]:.1f} %; on the test images {100 * clf.score(test):.1f} %."
    )
    out.print(f"{image}: {clf.classes_[row]} ({100 * probabilities[row]:.0f} %)")
    out.print(f"Curves: {folder / 'curves.png'}   Classifier: {folder / 'best'}")
    progress(f"Done in {time.perf_counter() - start:.0f} s")


def tuned(cls: type[FewShotClassifier], backbone: Backbone) -> FewShotClassifier:
    """Make an estimator that chooses its hyper-parameters inside the support set, if it can."""
    clf = cls()
    wanted = {"backbone": backbone, "templates": TEMPLATES, "selection": "support"}
    return clf.set_params(**{key: value for key, value in wanted.items() if key in clf.get_params()})


def cross_validate(method: FewShotClassifier, support: ImageSet) -> float:
    """Accuracy on images of the support set that a clone was not fitted on."""
    right = 0.0
    for fit, out in folds(np.asarray(support.labels), FOLDS):
        right += clone(method).fit(support[fit]).score(support[out]) * len(out)
    return right / len(support)

"""scikit-learn's own checks of an estimator, on feature arrays, for every method on features."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

import handful
from handful.refiner import Refiner
from handful.schedule import seeded

QUICK: dict[str, dict[str, Any]] = {
    "auto": {}, "zero-shot": {}, "linear-probe": {"max_iter": 20}, "logistic-probe": {"selection": "fixed"},
    "gda": {}, "kernel-ridge": {}, "ss-text": {},
    "tip-adapter": {}, "tip-adapter-f": {"epochs": 1, "views": 0}, "meta-adapter": {}, "ape": {},
    "ape-t": {"epochs": 1, "views": 0}, "tda": {},
    "clip-adapter": {"epochs": 1, "views": 0, "selection": "fixed"}, "text-tuning": {"epochs": 1, "views": 0},
    "linear-adapter": {"max_iter": 20}, "taskres": {"epochs": 1, "views": 0}, "lp-plus-plus": {"epochs": 20},
    "cross-modal-probe": {"iterations": 20},
}  # fmt: skip
"""Methods on features, with few steps."""
EXCEPTIONS = {
    "check_fit_score_takes_y": "the arguments are called images and labels: they may be paths and names",
    "check_requires_y_none": "zero-shot needs no labels, and the others say so in words of their own",
    "check_n_features_in_after_fitting": "the error names both widths, in words of its own",
    "check_dtype_object": "features that are no numbers raise a DataError: a ValueError, no TypeError",
}
"""Checks that are not met, with the reason."""
OF_A_STREAM = {
    "check_methods_sample_order_invariance": "what a stream answers depends on the images before",
    "check_methods_subset_invariance": "what a stream answers depends on the images before",
}
"""Those that a method which reads a stream does not meet."""


def fit(self: Any, images: Any, labels: Any = None, **given: Any) -> Any:
    """Fit with class means in the place of a text classifier: these features have no text tower."""
    if self.uses_text and labels is not None:
        x, y = np.asarray(images), np.asarray(labels).ravel()
        try:
            means = [
                np.nan_to_num(x[y == one].astype(float), posinf=0, neginf=0).mean(0) for one in np.unique(y)
            ]
        except (TypeError, ValueError, IndexError):  # what the check wants refused
            means = [np.ones(4)] * len(np.unique(y))
        given["class_weights"] = np.stack(means)
    return handful.FewShotClassifier.fit(self, images, labels, **given)


def network(self: Any, task: Any) -> Refiner:
    """Give Meta-Adapter a network of any width: what ships is of the backbone `mini`."""
    return Refiner(task.class_weights.shape[1]).reset(seeded(0)).requires_grad_(False)


CHECKED = {
    name: type(cls.__name__, (cls,), {"fit": fit, "__module__": __name__, "method": cls.method})
    for name, cls in handful.METHODS.items()
    if name in QUICK
}
CHECKED["meta-adapter"].network = network  # type: ignore[attr-defined]
globals().update({cls.__name__: cls for cls in CHECKED.values()})  # pickle looks for them here


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # no BaseEstimator: its import is slow, and what it gives is here
    each_check = parametrize_with_checks(
        [cls(**QUICK[name]) for name, cls in CHECKED.items()],
        expected_failed_checks=lambda estimator: (
            EXCEPTIONS | (OF_A_STREAM if estimator.method == "tda" else {})
        ),
        xfail_strict=True,
    )


@each_check
@pytest.mark.filterwarnings("ignore")  # of NaN in the class means above, and of an adapter that died
def test_scikit_learns_checks(estimator: Any, check: Any):
    check(estimator)

"""Linear-probe CLIP as first published: logistic regression, no text (Radford et al. 2021, §3.2)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from handful.backbones import Backbone
from handful.errors import check_integer, check_number, unexpected
from handful.estimator import FewShotClassifier, Task
from handful.heads import Head, LinearHead
from handful.selection import check_selection, folds, search_c, smallest_class


class LogisticProbe(FewShotClassifier):
    """Multinomial logistic regression on raw, projected features; reads no class names.

    C is searched as CoOp's linear probe does, seven decades and then eight steps of bisection
    (methods.md §1.2): `selection="val"` scores it on `fit(..., validation=)` as CoOp did, to the
    letter; `"support"`, by cross-validation inside the support set instead. With one image per class
    there is nothing to hold out: the fixed C is used, and `notes_` says so.
    `handful.protocols.coop_linear_probe` makes CoOp's draws too.

    Parameters
    ----------
    backbone
        A backbone, or the name of one; not needed for `Features`.
    C
        Inverse strength of the L2 penalty for `selection="fixed"`. The default is the one that
        CLIP's README gives.
    selection
        `"support"`, `"fixed"`, `"val"`, or `"oracle"`: as `"val"` on the test set given there (CoOp's
        ImageNet, whose validation split is its test split).
    folds
        At most this many folds.
    views
        Augmented views of each image to fit on; 0 takes the image itself.
    seed
        Of the views.
    """

    method: ClassVar[str] = "logistic-probe"
    uses_text: ClassVar[bool] = False
    head_type: ClassVar[type[Head]] = LinearHead

    def __init__(
        self,
        backbone: Backbone | str | None = None,
        *,
        C: float = 0.316,
        selection: Literal["support", "fixed", "val", "oracle"] = "support",
        folds: int = 3,
        views: int = 0,
        seed: int = 0,
    ) -> None:
        self.backbone = backbone
        self.C = C
        self.selection = selection
        self.folds = folds
        self.views = views
        self.seed = seed

    def fit_head(self, task: Task) -> LinearHead:
        """Choose C, then fit on the whole support set."""
        check_selection(self.selection, ["support", "fixed", "val", "oracle"])
        c, count = check_number("C", self.C, 0, above=True), check_integer("folds", self.folds, 2)
        x, y = task.support.values.numpy(), task.labels.numpy()  # [N, V, E], [N]
        if len(np.unique(y)) < 2:
            raise unexpected("labels", sorted(set(y.tolist())), "images of at least two classes")
        shots = smallest_class(y)
        if self.selection in ("val", "oracle"):
            seen = task.held_out
            c = search_c(outside(x, y, seen.features.numpy(), seen.labels.numpy()))
        elif self.selection == "support" and shots > 1:
            c = search_c(cross_validation(x, y, min(shots, count)))
        elif self.selection == "support":
            self.selection_ = "fixed"
            self.notes_.append(f"One image of some class: C was not searched, C={c} was used.")
        self.selected_ = {"C": c}
        model = _fit(_solver(c), x, y)
        weight, bias = model.coef_, model.intercept_
        if len(weight) == 1:  # two classes: scikit-learn keeps one row
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        full_weight = np.zeros((len(task.class_names), x.shape[-1]), np.float32)
        full_bias = np.full(len(task.class_names), -1e9, np.float32)  # a class without images
        full_weight[model.classes_], full_bias[model.classes_] = weight, bias
        return LinearHead(torch.from_numpy(full_weight), torch.from_numpy(full_bias))


def cross_validation(x: NDArray[Any], y: NDArray[Any], count: int) -> Callable[[float], float]:
    """Give a function of C: the share of held-out images that are right, all views leaving together.

    Each fold's solver starts from its weights at the C before, which saves most of its iterations.
    """
    parts = [(fit, out, _solver(1.0, warm_start=True)) for fit, out in folds(y, count)]

    def score(c: float) -> float:
        right = 0
        for fit, out, model in parts:
            _fit(model.set_params(C=c), x[fit], y[fit])
            right += int((model.predict(x[out].mean(1)) == y[out]).sum())
        return right / len(y)

    return score


def outside(
    x: NDArray[Any], y: NDArray[Any], seen: NDArray[Any], truth: NDArray[Any]
) -> Callable[[float], float]:
    """Give a function of C: the share of validation images that are right."""

    def score(c: float) -> float:
        return float((_fit(_solver(c), x, y).predict(seen) == truth).mean())

    return score


def _solver(c: float, warm_start: bool = False) -> LogisticRegression:
    return LogisticRegression(C=c, max_iter=1000, warm_start=warm_start)


def _fit(model: LogisticRegression, x: NDArray[Any], y: NDArray[Any]) -> LogisticRegression:
    """Fit on all views `[N, V, E]` of the images of labels `[N]`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(x.reshape(-1, x.shape[-1]), np.repeat(y, x.shape[1]))

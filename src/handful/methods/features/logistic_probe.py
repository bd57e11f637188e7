"""Linear-probe CLIP as first published: logistic regression, no text (Radford et al. 2021, §3.2)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from handful.backbones import Backbone
from handful.balance import whole_weights
from handful.errors import check_integer, check_number, unexpected
from handful.estimator import FewShotClassifier, Learned, Task, Validation
from handful.estimator.calibrating import fit_temperature
from handful.heads import Head, LinearHead
from handful.selection import choose, folds, search_c, smallest_class

LEAST = -1e4
"""Below any log probability of a fit that converged; `log(0)` is no number to average."""


class LogisticProbe(FewShotClassifier):
    """Multinomial logistic regression on raw, projected features; reads no class names.

    C is searched as CoOp's linear probe does, seven decades and then eight steps of bisection
    (Zhou et al. 2022a, code): `selection="val"` scores it by the accuracy on `fit(..., validation=)` as CoOp
    did, to the letter; `"support"`, by the log loss of cross-validation inside the support set, at the best
    temperature and with a normal prior of two decades for `log10 C` around the C given: few images don't tell
    large ones apart. With one image per class there is nothing to hold out: the fixed C is used, and
    `notes_` says so.
    The bench's protocol `coop-probe` makes CoOp's draws too.

    Parameters
    ----------
    backbone
        A backbone, or the name of one; not needed for `Features`.
    C
        Inverse strength of the L2 penalty for `selection="fixed"`, and what `"support"` stays near. The
        default is the one that CLIP's README gives.
    selection
        `"support"`, `"fixed"`, `"val"`, or `"oracle"`: as `"val"` on the test set given there (CoOp's
        ImageNet, whose validation split is its test split).
    folds
        At most this many folds.
    views
        Augmented views of each image to fit on; 0 takes the image itself.
    seed
        Of the views.
    balance
        Whether classes count alike where they have unequal numbers of images: the loss is weighted as by
        scikit-learn's `class_weight="balanced"`, and C is searched for the mean over classes.
    class_names
        Names of the classes, for labels that scikit-learn encodes as integers; see `fit`.
    """

    method: ClassVar[str] = "logistic-probe"
    uses_text: ClassVar[bool] = False
    trusts_names: ClassVar[bool] = False
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
        balance: bool = True,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.backbone, self.C, self.selection = backbone, C, selection
        self.folds, self.views, self.seed, self.balance = folds, views, seed, balance
        self.class_names = class_names

    def learn(self, task: Task) -> Learned:
        """Choose C, then fit on the whole support set."""
        c, count = check_number("C", self.C, 0, above=True), check_integer("folds", self.folds, 2)
        x, y = task.features.values.numpy(), task.labels.numpy()  # [N, V, E], [N]
        if len(np.unique(y)) < 2:
            raise unexpected(
                "labels", sorted(set(y.tolist())), "images of at least two classes",
                "Of one class there is nothing to learn.",
            )  # fmt: skip

        balance = task.weights is not None

        def search(seen: Validation | None) -> float:
            if seen is None:
                likely = cross_validation(x, y, min(smallest_class(y), count), balance)
                return search_c(lambda tried: likely(tried) - math.log10(tried / c) ** 2 / (8 * len(y)))
            return search_c(outside(x, y, seen, balance))

        choice = choose(self.selection, task, lambda: c, search, "C")
        model = _fit(_solver(choice.value, balance), x, y)
        weight, bias = model.coef_, model.intercept_
        if len(weight) == 1:  # two classes: scikit-learn keeps one row
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        full_weight = np.zeros((len(task.class_names), x.shape[-1]), np.float32)
        full_bias = np.full(len(task.class_names), -1e9, np.float32)  # a class without images
        full_weight[model.classes_], full_bias[model.classes_] = weight, bias
        head = LinearHead(torch.from_numpy(full_weight), torch.from_numpy(full_bias))
        return Learned(head, choice.selection, {"C": choice.value}, choice.notes)


def cross_validation(
    x: NDArray[Any], y: NDArray[Any], count: int, balance: bool = False
) -> Callable[[float], float]:
    """Give a function of C: the mean log probability of held-out images' classes, all views leaving together.

    It is that at the best temperature (`fit_temperature`): on few features of unit length the C that is sure
    enough is far above the one that is right most often. With `balance`, it is the mean over classes of
    their means. Each fold's solver starts from its weights at the C before, which saves most of its
    iterations.
    """
    parts = [(fit, out, _solver(1.0, balance, warm_start=True)) for fit, out in folds(y, count)]
    _, columns = np.unique(y, return_inverse=True)
    truth = torch.from_numpy(columns[np.concatenate([out for _, out, _ in parts])])
    weights = whole_weights(truth, balance).double()

    def score(c: float) -> float:
        said = []
        for fit, out, model in parts:
            _fit(model.set_params(C=c), x[fit], y[fit])
            said.append(model.predict_log_proba(x[out].mean(1)))
        logits = torch.from_numpy(np.maximum(np.concatenate(said), LEAST)).double()
        unlikely = F.cross_entropy(logits / fit_temperature(logits, truth, balance), truth, reduction="none")
        return -float(weights @ unlikely / weights.sum())

    return score


def outside(
    x: NDArray[Any], y: NDArray[Any], seen: Validation, balance: bool = False
) -> Callable[[float], float]:
    """Give a function of C: the accuracy on validation images."""
    features, truth = seen.features.numpy(), seen.labels.numpy()

    def score(c: float) -> float:
        right = _fit(_solver(c, balance), x, y).predict(features) == truth
        return seen.share(torch.from_numpy(right))

    return score


def _solver(c: float, balance: bool, warm_start: bool = False) -> Any:
    from sklearn.linear_model import LogisticRegression  # slow to import, and prediction does without

    weighting = "balanced" if balance else None
    return LogisticRegression(C=c, max_iter=1000, warm_start=warm_start, class_weight=weighting)


def _fit(model: Any, x: NDArray[Any], y: NDArray[Any]) -> Any:
    """Fit on all views `[N, V, E]` of the images of labels `[N]`."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(x.reshape(-1, x.shape[-1]), np.repeat(y, x.shape[1]))

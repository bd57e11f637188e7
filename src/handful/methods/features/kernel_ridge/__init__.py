"""Kernel ridge regression on what zero-shot leaves: ProKeR (Bendou et al. 2025, ProKeR: A Kernel Perspective
on Few-Shot Adaptation of Large Vision-Language Models)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch.nn.functional as F

from handful.backbones import Backbone
from handful.errors import check_number, unexpected
from handful.estimator import FewShotClassifier, Fitted, Learned, Task, Validation
from handful.heads import LARGEST, Head
from handful.methods.features.kernel_ridge.choosing import BETAS, LAMS, RANGES, grid, search
from handful.methods.features.kernel_ridge.head import RidgeHead
from handful.methods.features.kernel_ridge.regression import MOST_SEARCHED, Regression, Settings
from handful.selection import choose
from handful.types import Selection, Templates

BETA, LAM, RHO = 1.0, 0.1, 0.1
"""Good at 1 to 16 images of each class on four sets with CLIP's features, rho in units of the scale."""
PUBLISHED = {1: (3.0, 0.05), 2: (2.6, 0.05), 4: (1.5, 0.05), 8: (1.66, 0.07), 16: (1.7, 0.1)}
"""Beta and lam by the images of a class, as the published code found them for ImageNet and takes them
elsewhere."""


class KernelRidge(FewShotClassifier):
    """Zero-shot, and a ridge regression of what it leaves of the one-hot labels, in closed form.

    With unit features x, the text classifier T, `F0 = X T^T` and one-hot labels Y of the support set X,

        logits = s (x T^T + rho k(x, X) (K + lam W^-1)^-1 (Y - F0))

    where `K = k(X, X)`, and the kernel is `exp(-beta (1 - u . v))`, Tip-Adapter's affinity, or `u . v`. At
    `rho = 1` it is the mean of a Gaussian process around zero-shot.

    The published code is `rho = lam`, of cosines without s: one number is
    ridge and weight at once. That is `form="published"`. The default keeps the two apart, for then the same
    rho serves 1 to 16 images.

    Parameters
    ----------
    backbone
        A backbone, or the name of one.
    beta, lam, rho
        Sharpness of the kernel, ridge, and weight of the correction in units of the scale. None: 1, 0.1 and
        0.1; in the published form beta and lam as found for ImageNet with as many images of a class, and rho
        is lam.
    kernel
        `"rbf"`, or `"linear"`, which needs no more memory than `E x E` however many images there are, and
        leaves a linear head.
    selection
        How the numbers are chosen. `"support"`, the default: leaving out one shot of every class at a time,
        exactly, rho by the cross-entropy at the best temperature for every beta and lam
        (`handful.search.best_blend`); as given where a class has one image, and beyond 2,048 vectors of an
        rbf kernel. `"fixed"`: as given. `"val"` and `"oracle"`: the accuracy on `fit(..., validation=)`, over
        every rho up to 3.
    form
        `"textbook"` or `"published"`.
    ranges
        The grid of the published form's search: `"wide"`, or that of a data set (`RANGES`).
    templates
        Of the text classifier.
    views
        Augmented views of each image: its vector is their mean's direction. In the published form each is a
        row of its own; the published recipe takes 10. 0 takes the image itself.
    seed
        Of the views.
    balance
        Whether classes count alike where they have unequal numbers of images: the squared errors are weighted
        (W), so that the sum of a class's weights is the same for all, and numbers are chosen by the mean over
        classes.
    class_names
        Names of the classes, for labels that scikit-learn encodes as integers; see `fit`.
    """

    method: ClassVar[str] = "kernel-ridge"
    head_type: ClassVar[type[Head]] = RidgeHead
    online: ClassVar[bool] = True

    def __init__(
        self,
        backbone: Backbone | str | None = None,
        *,
        beta: float | None = None,
        lam: float | None = None,
        rho: float | None = None,
        kernel: Literal["rbf", "linear"] = "rbf",
        selection: Selection = "support",
        form: Literal["textbook", "published"] = "textbook",
        ranges: str = "wide",
        templates: Templates = "default",
        views: int = 0,
        seed: int = 0,
        balance: bool = True,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.backbone, self.beta, self.lam, self.rho, self.kernel = backbone, beta, lam, rho, kernel
        self.selection, self.form, self.ranges, self.templates = selection, form, ranges, templates
        self.views, self.seed, self.balance, self.class_names = views, seed, balance, class_names

    def learn(self, task: Task) -> Learned:
        """Solve the system; choose its numbers if asked."""
        given, problem = self.given(task), self.problem(task)
        word = self.selection
        notes: tuple[str, ...] = ()
        if word == "support" and given.beta and problem.keys.shape[:2].numel() > MOST_SEARCHED:
            word = "fixed"
            notes = (
                f"More than {MOST_SEARCHED:,} vectors: beta, lam and rho are as given. "
                "kernel='linear' searches.",
            )
        betas, lams = grid(self.ranges) if problem.plain else (BETAS, LAMS)

        def look(seen: Validation | None) -> Settings:
            return search(problem, seen, betas if given.beta else (0.0,), lams, self.balances())[0]

        choice = choose(word, task, lambda: given, look, "beta, lam and rho")
        found = choice.value
        chosen = {"lam": found.lam}
        chosen |= {} if problem.plain else {"rho": found.rho}
        chosen |= {"beta": found.beta} if found.beta else {}
        return Learned(problem.head(found), choice.selection, chosen, (*notes, *choice.notes))

    def relearn(self, task: Task, before: Fitted) -> Learned:
        """Search again inside the support set; keep the numbers that other images chose."""
        if self.selection in ("fixed", "support"):
            return self.learn(task)
        kept = {name: float(value) for name, value in before.selected.items()}
        found = Settings(kept.get("beta", 0.0), kept["lam"], kept.get("rho", 0.0))
        problem = self.problem(task)
        head = problem.head(replace(found, rho=found.lam) if problem.plain else found)
        note = "beta, lam and rho were chosen before classes or images were changed."
        return Learned(head, before.selection, before.selected, (note,))

    def given(self, task: Task) -> Settings:
        """Check the numbers; give them, or the form's."""
        if self.form not in ("textbook", "published"):
            raise unexpected("form", self.form, "'textbook' or 'published'")
        if self.kernel not in ("rbf", "linear"):
            raise unexpected("kernel", self.kernel, "'rbf' or 'linear'")
        if not isinstance(self.ranges, str) or self.ranges not in RANGES:
            raise unexpected("ranges", self.ranges, f"one of {sorted(RANGES)}")
        beta, lam, rho = BETA, LAM, RHO
        if self.form == "published":
            if self.rho is not None:
                raise unexpected("rho", self.rho, "None with form='published', where it is lam")
            shots = len(task.labels) / max(len(task.labels.unique()), 1)
            beta, lam = PUBLISHED[max((known for known in PUBLISHED if known <= shots), default=1)]
        beta = beta if self.beta is None else check_number("beta", self.beta, 0, above=True)
        lam = lam if self.lam is None else check_number("lam", self.lam, 0, above=True)
        rho = rho if self.rho is None else check_number("rho", self.rho, 0)
        if max(beta, lam, rho) > LARGEST:
            raise unexpected("beta, lam or rho", max(beta, lam, rho), f"numbers up to {LARGEST:g}")
        return Settings(
            0.0 if self.kernel == "linear" else beta, lam, lam if self.form == "published" else rho
        )

    def problem(self, task: Task) -> Regression:
        """State the regression."""
        text, published = task.class_weights, self.form == "published"
        if not task.has("inputs"):
            keys = text[:0, None]
        elif published:
            keys = F.normalize(task.features.values, dim=-1)
        else:
            keys = task.features.directions()[:, None]
        self.balances()
        return Regression(text, keys, task.labels, task.scale, task.weights, published)

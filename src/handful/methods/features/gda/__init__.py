"""Gaussian discriminant analysis beside zero-shot (Wang et al. 2024, A Hard-to-Beat Baseline for
Training-free CLIP-based Adaptation)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F

from handful.backbones import Backbone
from handful.balance import whole_weights
from handful.errors import check_number, unexpected
from handful.estimator import FewShotClassifier, Fitted, Learned, Task, Validation
from handful.heads import LARGEST, Head
from handful.left_out.gda import Moments, Rule, discriminants, left_out
from handful.methods.features.gda.gaussians import (
    Gaussians,
    base_and_new,
    dimensionless,
    mean_shots,
    published,
)
from handful.methods.features.gda.head import DiscriminantHead
from handful.search import best_blend, best_ratio
from handful.selection import choose, shot_folds
from handful.types import Selection, Templates

FORMS = ("dimensionless", "published", "base-to-new")
ALPHAS = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)
"""What the published code tries on validation images."""
PER_IMAGE, PUBLISHED = 0.08, 0.1
"""The alphas of the forms: what was good at 1 to 16 images on four sets with CLIP's features; and what the
published code keeps where none of `ALPHAS` is right once."""
MOST = 3.0
"""The largest alpha that a search looks at: names count for little there."""


class GDA(FewShotClassifier):
    """Zero-shot logits plus a Gaussian of each class, all of one covariance, in closed form.

    With the unit features x of all views, their class means `mu_c`, the covariance S around these, pooled
    over all classes, and a precision P that is drawn to the identity (there are fewer images than
    dimensions),

        logits_c = s x t_c + s alpha K (x P mu_c - mu_c P mu_c / 2),   P = (1 + e) (S / t + e I)^-1

    where `t = tr(S) / E`, `e = E / (N - 1)`, and K is the mean number of images of a class. That is linear in
    x. It is the published P, `E pinv((n - 1) S + tr(S) I)` with n vectors, up to a factor, and n for N: so
    alpha is a pure number, views that come twice change nothing, and where nothing is known of S (one image
    of each class) P is I. The published alpha grows with shots and views, from 0.001 to 100; this one does
    not.

    A class without images takes the mean of the others' discriminants.

    Parameters
    ----------
    backbone
        A backbone, or the name of one.
    alpha
        Weight of the Gaussians. None: 0.08 for each image of a class, or 0.1 for the published forms, whose
        logits are `s x t_c + alpha (x P mu_c - mu_c P mu_c / 2 - log C)`.
    selection
        How alpha is chosen. `"support"`, the default: leaving out one shot of every class at a time, exactly,
        alpha by the cross-entropy at the best temperature (`handful.search.best_blend`); as given where a
        class has one image. `"fixed"`: as given. `"val"` and `"oracle"`: the accuracy on `fit(...,
        validation=)`, over every alpha up to 3, or, for the published forms, the first best one of seven,
        0.0001 to 100.
    form
        `"dimensionless"`, the default, for its alpha fits every number of shots and of views; `"published"`;
        or `"base-to-new"`, published too: classes without images are new ones, which have Gaussians of their
        names and the images nearest to these, with a precision of their own.
    templates
        Of the text classifier.
    views
        Augmented views of each image, all of them vectors; the published recipe takes 10, 0 takes the image
        itself.
    seed
        Of the views.
    balance
        Whether classes count alike where they have unequal numbers of images: the prior of the Gaussians is
        uniform, K is the harmonic mean, and alpha is chosen by the mean over classes. False adds the
        logarithm of each class's share of the images, but for the published forms, whose prior is always
        uniform. The covariance is a mean over vectors in any case.
    class_names
        Names of the classes, for labels that scikit-learn encodes as integers; see `fit`.
    """

    method: ClassVar[str] = "gda"
    head_type: ClassVar[type[Head]] = DiscriminantHead
    online: ClassVar[bool] = True

    def __init__(
        self,
        backbone: Backbone | str | None = None,
        *,
        alpha: float | None = None,
        selection: Selection = "support",
        form: Literal["dimensionless", "published", "base-to-new"] = "dimensionless",
        templates: Templates = "default",
        views: int = 0,
        seed: int = 0,
        balance: bool = True,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.backbone, self.alpha, self.selection, self.form = backbone, alpha, selection, form
        self.templates, self.views, self.seed, self.balance = templates, views, seed, balance
        self.class_names = class_names

    def learn(self, task: Task) -> Learned:
        """Estimate the Gaussians; choose alpha if asked."""
        alpha, parts = self.given_alpha(), self.gaussians(task)
        choice = choose(self.selection, task, lambda: alpha, lambda seen: self.search(task, seen), "alpha")
        return Learned(parts.head(choice.value), choice.selection, {"alpha": choice.value}, choice.notes)

    def relearn(self, task: Task, before: Fitted) -> Learned:
        """Search again inside the support set; keep the alpha that other images chose."""
        if self.selection in ("fixed", "support"):
            return self.learn(task)
        note = "alpha was chosen before classes or images were changed."
        head = self.gaussians(task).head(float(before.selected["alpha"]))
        return Learned(head, before.selection, before.selected, (note,))

    def given_alpha(self) -> float:
        """Check the form and alpha; give alpha, or the form's."""
        if self.form not in FORMS:
            raise unexpected("form", self.form, f"one of {list(FORMS)}")
        if self.alpha is None:
            return PER_IMAGE if self.form == "dimensionless" else PUBLISHED
        alpha = check_number("alpha", self.alpha, 0)
        if alpha > LARGEST:
            raise unexpected("alpha", self.alpha, f"a number up to {LARGEST:g}")
        return alpha

    def rule(self) -> Rule:
        """How the precision follows from the moments."""
        return (
            published if self.form == "published" else partial(dimensionless, by_images=not self.balances())
        )

    def gaussians(self, task: Task) -> Gaussians:
        """Estimate the Gaussians."""
        text, scale, labels = task.class_weights, task.scale, task.labels
        values = task.features.values if task.has("inputs") else text[:0, None]
        keys, classes = F.normalize(values, dim=-1), len(text)
        if self.form == "base-to-new":
            weight, bias, precision = base_and_new(keys, labels, text)
            return Gaussians(text, scale, keys, labels, weight, bias, precision, 1.0)
        moments = Moments.of(keys, labels, classes)
        factor, ridge, prior = self.rule()(moments)
        identity = torch.eye(text.shape[1], dtype=torch.float64)
        precision = factor * torch.linalg.inv(moments.scatter + ridge * identity)
        weight, bias = discriminants(moments, moments.means @ precision, prior)
        if self.form == "published":
            return Gaussians(text, scale, keys, labels, weight, bias - math.log(classes), precision, 1.0)
        return Gaussians(
            text,
            scale,
            keys,
            labels,
            scale * weight,
            scale * bias,
            scale * precision,
            mean_shots(moments.images),
        )

    def search(self, task: Task, seen: Validation | None) -> float:
        """Choose alpha on images that were seen, or, for None, leaving out shots of the support set."""
        parts = self.gaussians(task)
        if seen is not None:
            base, extra = parts.logits(seen.features)
            if self.form == "dimensionless":
                return best_ratio(base, extra, seen.labels, 0.0, MOST, seen.weights)[0]
            scores = [seen.share((base + alpha * extra).argmax(1) == seen.labels) for alpha in ALPHAS]
            return ALPHAS[scores.index(max(scores))] if max(scores) > 0 else PUBLISHED
        if self.form == "base-to-new":
            raise unexpected(
                "selection", "support", "'fixed', 'val' or 'oracle' with form='base-to-new'",
                "Give alpha, or validation images of the base classes.",
            )  # fmt: skip
        folds, classes = shot_folds(task.labels), len(task.class_names)
        queries = F.normalize(parts.keys.mean(1), dim=-1)
        extra = left_out(parts.keys, task.labels, queries, classes, folds, self.rule())
        base = task.scale * queries @ task.class_weights.T
        if self.form == "dimensionless":
            counts = torch.bincount(task.labels, minlength=classes)
            for fold in folds[folds >= 0].unique():
                out = torch.bincount(task.labels[folds == fold], minlength=classes)
                extra[folds == fold] *= task.scale * mean_shots(counts - out)
        held, weights = folds >= 0, whole_weights(task.labels, self.balances())
        return min(
            best_blend(base[held], extra[held], task.labels[held], weights[held])[0],
            MOST if self.form == "dimensionless" else ALPHAS[-1],
        )

"""A linear probe that starts from the text classifier and stays near it: ZS-LP and CLAP (Silva-Rodríguez
et al. 2024, A Closer Look at the Few-Shot Adaptation of Large Vision-Language Models)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from handful.backbones import Backbone
from handful.convex.probe import default_strength, probe
from handful.errors import check_integer, check_number, unexpected
from handful.estimator import FewShotClassifier, Learned, Task, Validation
from handful.heads import CosineHead
from handful.methods.features.linear_probe.published import (
    BATCH,
    CONSTRAINTS,
    Prototypes,
    multipliers,
    pool_batches,
)
from handful.schedule import Schedule
from handful.selection import choose, folds
from handful.train import Run, train
from handful.types import Selection, Templates

FACTORS = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01)
"""Strengths that a search tries, in units of the default one."""
FOLDS = 4
"""Shots that a search inside the support set holds out, one after the other, at most."""


class LinearProbe(FewShotClassifier):
    """Class weights that move from the text classifier to where the support set wants them.

    With `x` the unit features and `T [C, E]` the text classifier, on the way from T to the minimum over
    `W [C, E]` of

        cross_entropy(scale x W^T, y) + strength mean_c lambda_c |w_c - t_c|^2

    where `lambda_c` is the mean zero-shot probability of class c over its own support images (CLAP,
    §4.2): a class whose name says much stays near its name. There is nothing to choose, and so no
    validation set.

    Parameters
    ----------
    backbone
        A backbone, or the name of one.
    strength
        Of the constraint; 0 is ZS-LP, which only starts at the text classifier. `"auto"` is
        `75 / K (scale / 100)^2` for K images of a class in the harmonic mean, and `(scale / 100)^2` for
        `solver="published"`. (The published 1 acts on raw text features, of norm 8 to 9 in CLIP; on
        unit ones, as here, that is 64 to 80.)
    solver
        `"convex"`: rows of W and T of unit norm at the start, and free after; the problem is then convex, and
        the answer the same whatever the seed. `"published"`: logits `scale x norm(W)^T`, T the mean raw
        text features, whose length decides the step; SGD with momentum .9, a first epoch at 1e-5, then a
        cosine, 256 views a step and as many steps an epoch as the images alone make. It was meant for
        `views=20`. The default is the convex one: it has one answer, and gets there in less time.
    tolerance
        Of the convex solver: it stops when this share of the gradient is left. The default stops early, which
        on CLIP's features is .3 to .6 points better than the minimum at 1 to 4 images of a class, and as good
        at more; 1e-4 is the minimum.
    constraint
        lambda_c. `"probability"`: as above. `"balanced"`: 1. `"corrected"`: as above, but with mean 1.
        `"constant"`: the mean of the first for all. `"adaptive"`: with `solver="published"`, the first, and
        after each epoch `lambda += rho h`, `rho = h`, h the squared way of a class from its text. A class
        without images counts 1.
    selection
        `"fixed"`: strength as given. `"support"`: the one of 7, .01 to 10 times the default, with the least
        log loss on up to 4 shots of every class, each held out once. `"val"`: the same on
        `fit(..., validation=)`; `"oracle"`: on the test set given there.
    templates
        Of the text classifier.
    max_iter
        Evaluations of the convex solver at most; epochs of the published one.
    lr
        Of the published solver; `"auto"` is the published .1 at CLIP's scale of 100, `.1 (100 / scale)^2` at
        another.
    views
        Augmented views of each image to fit on; 0 takes the image itself.
    seed
        Of the views, and of the order of images.
    balance
        Whether classes count alike where they have unequal numbers of images: the cross-entropy is then the
        mean over classes of its mean over their images (the published solver draws as many of each). The
        constraint is a mean over classes as it is.
    class_names
        Names of the classes, for labels that scikit-learn encodes as integers; see `fit`.
    """

    method: ClassVar[str] = "linear-probe"
    trusts_names: ClassVar[bool] = False

    def __init__(
        self,
        backbone: Backbone | str | None = None,
        *,
        strength: float | Literal["auto"] = "auto",
        solver: Literal["convex", "published"] = "convex",
        constraint: Literal["probability", "balanced", "corrected", "constant", "adaptive"] = "probability",
        selection: Selection = "fixed",
        templates: Templates = "default",
        max_iter: int = 300,
        tolerance: float = 0.03,
        lr: float | Literal["auto"] = "auto",
        views: int = 0,
        seed: int = 0,
        balance: bool = True,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.backbone, self.strength, self.solver, self.constraint = backbone, strength, solver, constraint
        self.selection, self.templates, self.max_iter, self.lr = selection, templates, max_iter, lr
        self.views, self.seed, self.balance = views, seed, balance
        self.tolerance, self.class_names = tolerance, class_names

    @property
    def n_iter_(self) -> int:
        """Steps that the last fit took: of the convex solver at most `max_iter`."""
        return len(self.losses_)

    def learn(self, task: Task) -> Learned:
        """Choose the strength if asked, and find the class weights."""
        if self.solver not in ("convex", "published"):
            raise unexpected("solver", self.solver, "'convex' or 'published'")
        if self.constraint not in CONSTRAINTS or (self.constraint, self.solver) == ("adaptive", "convex"):
            allowed = f"one of {list(CONSTRAINTS)}, 'adaptive' with solver='published' only"
            raise unexpected("constraint", self.constraint, allowed)
        given = self.default(task)
        if not (isinstance(self.strength, str) and self.strength == "auto"):
            given = check_number("strength", self.strength, 0)
        choice = choose(
            self.selection, task, lambda: given, lambda seen: self.search(task, seen), "the strength"
        )
        weights, run = self.solve(task, choice.value)
        head = CosineHead(weights, task.scale)
        return Learned.trained(head, run, choice, strength=choice.value)

    def default(self, task: Task) -> float:
        """Give the strength that is called `"auto"`."""
        return (
            (task.scale / 100) ** 2
            if self.solver == "published"
            else default_strength(task.labels, task.scale)
        )

    def solve(self, task: Task, strength: float) -> tuple[Tensor, Run]:
        """Find the class weights `[C, E]` for a strength."""
        most = check_integer("max_iter", self.max_iter, 1)
        tolerance = check_number("tolerance", self.tolerance, 0)
        values = task.features.values  # [N, V, E]
        x, labels = F.normalize(values.flatten(0, 1), dim=-1), task.labels.repeat_interleave(values.shape[1])
        if self.solver == "published":
            return self.descend(task, x, labels, strength, most)
        text = task.class_weights  # [C, E]
        anchors = strength * multipliers(task.scale * x @ text.T, labels, self.constraint)
        weights = None if task.weights is None else task.weights.repeat_interleave(values.shape[1])
        found, losses = probe(x, labels, text, task.scale, anchors, weights, most=most, tolerance=tolerance)
        return found, Run(losses)

    def descend(
        self, task: Task, x: Tensor, labels: Tensor, strength: float, epochs: int
    ) -> tuple[Tensor, Run]:
        """Train prototypes as published."""
        auto = isinstance(self.lr, str) and self.lr == "auto"
        lr = 0.1 * (100 / task.scale) ** 2 if auto else check_number("lr", self.lr, 0, above=True)
        schedule = Schedule(epochs, BATCH, lr, self.seed, momentum=0.9, weight_decay=0.0)
        text, generator, images = (
            task.text_features.means_as_clips(task.scale),
            schedule.generator(),
            len(task.labels),
        )
        logits = task.scale * x @ F.normalize(text, dim=-1).T
        model = Prototypes(text, task.scale, strength * multipliers(logits, labels, self.constraint))
        run = train(
            model,
            lambda: pool_batches(x, labels, images, generator, task.weights is not None),
            schedule,
            max(min(images, len(x)) // BATCH, 1),
            loss=lambda _, batch: model.loss(batch),
            after_epoch=lambda _: model.adapt_lambdas() if self.constraint == "adaptive" else None,
            generator=generator,
        )
        return model.class_weights().detach(), run

    def search(self, task: Task, seen: Validation | None) -> float:
        """Give the strength with the least log loss on images that were not fitted."""
        strengths = [factor * self.default(task) for factor in FACTORS]
        if seen is not None:
            losses = self.held_out_losses(task, seen, strengths)
        else:
            most = int(torch.bincount(task.labels).max())
            losses = torch.zeros(len(strengths))
            for kept, out in islice(folds(task.labels.numpy(), most), FOLDS):
                left = Validation(
                    task.inputs[out].pooled(), task.labels[torch.from_numpy(out)], task.weights is not None
                )
                losses += self.held_out_losses(task.choose(torch.from_numpy(kept)), left, strengths)
        return strengths[int(losses.argmin())]

    def held_out_losses(self, task: Task, seen: Validation, strengths: list[float]) -> Tensor:
        """Give the log loss on some images at each strength."""
        found, weights = list[Tensor](), seen.weights.float()
        for strength in strengths:
            solved, _ = self.solve(task, strength)
            logits = CosineHead(solved, task.scale).read(seen.features)
            losses = F.cross_entropy(logits, seen.labels, reduction="none")
            found.append((weights * losses).sum() / weights.sum())
        return torch.stack(found)

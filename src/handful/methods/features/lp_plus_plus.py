"""LP++: a linear probe that blends in the text by a learned weight of each class (Huang et al. 2024, LP++: A
Surprisingly Strong Linear Probe for Few-Shot CLIP)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from handful.backbones import Backbone
from handful.errors import TrainingError, check_integer
from handful.estimator import FewShotClassifier, Learned, Task, Validation
from handful.heads import Head, LinearHead
from handful.schedule import seeded
from handful.selection import choose, folds
from handful.types import Selection, Templates

MOMENTUM, EVERY = 0.9, 10
"""Of the steps in A and b; and after how many of them alpha is moved."""
AT_100 = 250.0
"""Published start of alpha, in units of the mean cosine of images to their class, at CLIP's scale of 100."""
FOLDS = 4
"""Shots that a search inside the support set holds out, one after the other, at most."""


class Blend:
    """`f A^T + b + alpha_k f.t_k`, and its descent, block by block, with step sizes that need no search.

    Steps in A and b are `4 N / lambda_max(X^T X)` with momentum; each tenth one alpha moves by
    `N / (4 max_k sum_i (x_i.t_k)^2)` along its gradient, added up since the start (in the published
    code it is never set to 0).

    Parameters
    ----------
    x, labels
        Unit features `[N, E]`, and their classes `[N]`.
    text
        `[C, E]`, rows of unit norm.
    scale
        The inverse temperature.
    bias
        Where b starts, `[C]`.
    weights
        Of the images, `[N]`, of mean 1; None for alike.
    momentum, every
        Of the steps in A and b; and after how many of them alpha is moved.
    """

    def __init__(
        self, x: Tensor, labels: Tensor, text: Tensor, scale: float, bias: Tensor,
        weights: Tensor | None = None, *, momentum: float = MOMENTUM, every: int = EVERY,
    ) -> None:  # fmt: skip
        share = torch.ones_like(x[:, 0]) if weights is None else weights
        self.x, self.text, self.share = x, text, share / len(x)
        self.own, self.cosines = F.one_hot(labels, len(text)).to(x.dtype), x @ text.T
        counts = self.own.sum(0)
        mean = ((self.own * self.cosines).sum(0) / counts.clamp(min=1))[counts > 0].mean()
        self.weight, self.bias = self.own.T @ (share[:, None] * x), bias.clone()  # the sum of its images
        self.alpha = (AT_100 * scale / 100 * mean).expand(len(text)).clone()
        rows = share.sqrt()[:, None] * x
        self.lr_weight = 4 * len(x) / torch.linalg.matrix_norm(rows, 2).square()
        self.lr_alpha = len(x) / (4 * (share[:, None] * self.cosines.square()).sum(0).max())
        self.momentum, self.every = momentum, every
        self.sum, self.steps = torch.zeros_like(self.alpha), 0
        self.speed: tuple[Tensor, Tensor] | None = None

    def logits(self, x: Tensor) -> Tensor:
        """Give `[N, C]` for unit features `[N, E]`."""
        return x @ self.class_weights().T + self.bias

    def class_weights(self) -> Tensor:
        """What it collapses to, `A + alpha t`, `[C, E]`."""
        return self.weight + self.alpha[:, None] * self.text

    def gradients(self) -> tuple[float, Tensor, Tensor, Tensor]:
        """Give the cross-entropy, and its gradients by A, b and alpha."""
        logs = (self.x @ self.weight.T + self.bias + self.alpha * self.cosines).log_softmax(1)
        wrong = self.share[:, None] * (logs.exp() - self.own)
        loss = -float((self.share * (self.own * logs).sum(1)).sum())
        return loss, wrong.T @ self.x, wrong.sum(0), (wrong * self.cosines).sum(0)

    def step(self) -> float:
        """Take one step, and give the loss before it."""
        loss, *slopes, by_alpha = self.gradients()
        if not loss < float("inf"):
            raise TrainingError(f"The loss became {loss} at step {self.steps + 1}: check the features.")
        if self.speed is not None:
            slopes = [g + self.momentum * v for g, v in zip(slopes, self.speed, strict=True)]
        self.speed = (slopes[0], slopes[1])
        self.weight = self.weight - self.lr_weight * slopes[0]
        self.bias = self.bias - self.lr_weight * slopes[1]
        self.sum = self.sum + by_alpha
        self.steps += 1
        if self.steps % self.every == 0:
            self.alpha = self.alpha - self.lr_alpha * self.sum
        return loss


class LPPlusPlus(FewShotClassifier):
    """A linear probe on unit features, plus the text classifier times a learned weight of each class.

    Logits are `x A^T + b + alpha_k x.t_k`, no temperature. A starts as the sum of the images of
    a class, alpha at `2.5 scale` times the mean cosine of images to their class, b at random as a linear
    layer of PyTorch's does. Full-batch steps of sizes that follow from the data; it collapses to
    `W = A + alpha t` and b.

    Parameters
    ----------
    backbone
        A backbone, or the name of one.
    epochs
        Steps, 300 as published, with all images at each.
    selection
        Of the step to stop after. `"fixed"`: the last one. `"val"`: the most accurate on
        `fit(..., validation=)`, the last on ties, as published; `"oracle"`: on the test set given there.
        `"support"`: the one with the least log loss on up to 4 shots of every class, each held out once.
    templates
        Of the text classifier.
    views
        Augmented views of each image to fit on; 0 takes the image itself.
    seed
        Of the views, and of where b starts.
    balance
        Whether classes count alike where they have unequal numbers of images: the cross-entropy is then the
        mean over classes of its mean over their images, and so is the start of A.
    class_names
        Names of the classes, for labels that scikit-learn encodes as integers; see `fit`.
    """

    method: ClassVar[str] = "lp-plus-plus"
    head_type: ClassVar[type[Head]] = LinearHead

    def __init__(
        self,
        backbone: Backbone | str | None = None,
        *,
        epochs: int = 300,
        selection: Selection = "fixed",
        templates: Templates = "default",
        views: int = 0,
        seed: int = 0,
        balance: bool = True,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.backbone, self.epochs, self.selection, self.templates = backbone, epochs, selection, templates
        self.views, self.seed, self.balance = views, seed, balance
        self.class_names = class_names

    def start(self, task: Task) -> Blend:
        """Give the blend before training."""
        values = task.features.values  # [N, V, E]
        x, labels = F.normalize(values.flatten(0, 1), dim=-1), task.labels.repeat_interleave(values.shape[1])
        weights = None if task.weights is None else task.weights.repeat_interleave(values.shape[1])
        text = task.class_weights
        bias = (2 * torch.rand(len(text), generator=seeded(self.seed)) - 1) / x.shape[1] ** 0.5
        return Blend(x, labels, text, task.scale, bias, weights)

    def learn(self, task: Task) -> Learned:
        """Choose the number of steps if asked, and take them."""
        epochs = check_integer("epochs", self.epochs, 1)

        def search(seen: Validation | None) -> int:
            if seen is not None:
                return best_step(self.start(task), epochs, accuracy_on(seen))
            scores = torch.zeros(epochs)
            most = int(torch.bincount(task.labels).max())
            for rows, out in islice(folds(task.labels.numpy(), most), FOLDS):
                held = torch.from_numpy(out)
                x = F.normalize(task.inputs[out].pooled(), dim=-1)
                left = Validation(x, task.labels[held], task.weights is not None)
                scores += each_step(
                    self.start(task.choose(torch.from_numpy(rows))), epochs, minus_loss_on(left)
                )
            return int(scores.argmax()) + 1

        choice = choose(self.selection, task, lambda: epochs, search, "the number of steps")
        model = self.start(task)
        losses = tuple(model.step() for _ in range(choice.value))
        head = LinearHead(model.class_weights(), model.bias, unit=True)
        return Learned(head, choice.selection, {"epochs": choice.value}, choice.notes, losses)


Score = Callable[[Blend], float]


def each_step(model: Blend, epochs: int, score: Score) -> Tensor:
    """Give the score after each step, `[epochs]`."""
    found = []
    for _ in range(epochs):
        model.step()
        found.append(score(model))
    return torch.tensor(found, dtype=torch.float64)


def best_step(model: Blend, epochs: int, score: Score) -> int:
    """Give the number of steps with the best score, the last of them on ties."""
    scores = each_step(model, epochs, score)
    return int((scores == scores.max()).nonzero().max()) + 1


def accuracy_on(seen: Validation) -> Score:
    """Give the accuracy on some images as a score."""
    x = F.normalize(seen.features, dim=-1)
    return lambda model: seen.share(model.logits(x).argmax(1) == seen.labels)


def minus_loss_on(seen: Validation) -> Score:
    """Give minus the log loss on some images as a score."""
    x, weights = F.normalize(seen.features, dim=-1), seen.weights.float()

    def score(model: Blend) -> float:
        losses = F.cross_entropy(model.logits(x), seen.labels, reduction="none")
        return -float((weights * losses).sum() / weights.sum())

    return score

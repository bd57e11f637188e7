"""Cross-modal linear probing: prompts are training samples too (Lin et al. 2023, Multimodality Helps
Unimodality: Cross-Modal Few-Shot Learning with Multimodal Models)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handful.backbones import Backbone
from handful.balance import balanced_order
from handful.convex.probe import default_strength, probe
from handful.errors import check_integer, check_number, unexpected
from handful.estimator import FewShotClassifier, Learned, Task, Validation
from handful.heads import CosineHead
from handful.prompts import TextFeatures
from handful.schedule import Schedule
from handful.selection import choose
from handful.train import Batch, Run, train
from handful.types import Templates

WARMUP, CHECK = 50, 100
"""Iterations of the rising learning rate, and after how many validation images are looked at."""
GRID = tuple((lr, decay, size) for lr in (1e-3, 1e-4) for decay in (0.0, 0.01, 1e-4) for size in (8, 32))
"""Published settings that `selection="val"` tries: learning rate at scale 100, weight decay, batch."""


class Weights(nn.Module):
    """`scale norm(f) W^T`: W `[C, E]` starts as the text classifier, and its rows are free."""

    def __init__(self, start: Tensor, scale: float) -> None:
        super().__init__()
        self.weights, self.scale = nn.Parameter(start.clone()), scale

    def forward(self, features: Tensor) -> Tensor:
        """Map features of images or texts `[N, E]` to logits `[N, C]`."""
        return CosineHead(self.weights, self.scale).read(features)


def text_start(text: TextFeatures) -> Tensor:
    """Give where W starts: the mean of the raw features of a class's prompts, normalised, `[C, E]`."""
    return F.normalize(text.means(), dim=-1)


@dataclass(frozen=True)
class Rising(Schedule):
    """AdamW's learning rate by iterations: it rises for 50 of them, then a cosine over all of them falls."""

    def learning_rate(self, epoch: float) -> float:
        """Give it at an iteration: 1e-5 first, `lr i / 50`, then `lr (1 + cos(pi (i - 50) / T)) / 2`."""
        if epoch < WARMUP:
            return self.lr * epoch / WARMUP if epoch else min(1e-5, self.lr)
        return self.lr * (1 + math.cos(math.pi * (epoch - WARMUP) / self.epochs)) / 2


@dataclass
class EarlyStop:
    """Keeps the weights that are most accurate on some images, the first ones on ties.

    It looks after the first iteration and every hundredth from there.
    """

    seen: Validation | None
    model: Weights
    best: float = -1.0
    kept: Tensor | None = None
    iteration: int = 0

    def __call__(self, done: int) -> None:
        """Look, after so many iterations."""
        if self.seen is None or (done - 1) % CHECK:
            return
        if (right := self.seen.accuracy(self.model)) > self.best:
            self.best, self.kept, self.iteration = right, self.model.weights.detach().clone(), done - 1


def rows_forever(labels: Tensor, size: int, generator: torch.Generator, balance: bool) -> Iterator[Tensor]:
    """Give shuffled rows in batches, pass after pass; a last, smaller one is dropped if others came."""
    while True:
        count = len(labels)
        order = balanced_order(labels, generator) if balance else torch.randperm(count, generator=generator)
        yield from (rows for rows in order.split(size) if len(rows) == size or count < size)


class CrossModalProbe(FewShotClassifier):
    """A linear probe whose training samples are images and prompts, half of each batch each.

    Logits are `scale norm(f) W^T`, for images and for text features alike; W `[C, E]` has no bias, starts as
    the text classifier, and its rows are free (§3). At the end W is averaged with its start (WiSE-FT).

    Parameters
    ----------
    backbone
        A backbone, or the name of one.
    solver
        `"published"`: AdamW, whose learning rate rises for 50 iterations and falls with a cosine. `"convex"`:
        the minimum of half the cross-entropy of images, half that of prompts, and `strength mean_c
        |w_c - t_c|^2`, the strength as the linear probe's default, which stands for stopping early. The
        default is the published one; the other has no random order, and takes a fraction of the time.
    templates
        Of the prompts, each of which is a sample of its class.
    iterations
        Of the published solver; 12,800 in the article. Of the convex one it is the most evaluations.
    lr
        `"auto"` is 1e-3 at CLIP's scale of 100 and `1e-3 (100 / scale)` at another, where a step of AdamW
        moves the logits as much.
    weight_decay, batch_size
        .01 and 8, half of the batch images and half prompts: one of the published settings.
    selection
        `"fixed"`: as given, and the last iteration. `"val"`: the most accurate of the 12 published settings
        and of their weights after 1, 101, 201 ... iterations, on `fit(..., validation=)`, as published;
        `"oracle"`: on the test set given there.
    wise_ft
        Share of the trained weights in the average with the text classifier; 1 keeps them; .5 in the article.
    views
        Augmented views of each image to fit on; 0 takes the image itself.
    seed
        Of the views and of the order.
    balance
        Whether classes count alike where they have unequal numbers of images: as many images of each are then
        drawn, or their cross-entropy is weighted.
    class_names
        Names of the classes, for labels that scikit-learn encodes as integers; see `fit`.
    """

    method: ClassVar[str] = "cross-modal-probe"
    selects_on_support: ClassVar[bool] = False
    trusts_names: ClassVar[bool] = False

    def __init__(
        self,
        backbone: Backbone | str | None = None,
        *,
        solver: Literal["published", "convex"] = "published",
        templates: Templates = "default",
        iterations: int = 12_800,
        lr: float | Literal["auto"] = "auto",
        weight_decay: float = 0.01,
        batch_size: int = 8,
        selection: Literal["fixed", "val", "oracle"] = "fixed",
        wise_ft: float = 1.0,
        views: int = 0,
        seed: int = 0,
        balance: bool = True,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.backbone, self.solver, self.templates, self.iterations = backbone, solver, templates, iterations
        self.lr, self.weight_decay, self.batch_size = lr, weight_decay, batch_size
        self.selection, self.wise_ft, self.views, self.seed = selection, wise_ft, views, seed
        self.balance = balance
        self.class_names = class_names

    def learn(self, task: Task) -> Learned:
        """Train the weights, and average them with the text classifier's."""
        if self.solver not in ("published", "convex"):
            raise unexpected("solver", self.solver, "'published' or 'convex'")
        if self.selection == "support" or (self.selection != "fixed" and self.solver == "convex"):
            raise unexpected("selection", self.selection, "'fixed', or 'val' and 'oracle' as published")
        share = check_number("wise_ft", self.wise_ft, 0)
        if share > 1:
            raise unexpected("wise_ft", share, "a share from 0 to 1")
        auto = isinstance(self.lr, str) and self.lr == "auto"
        lr = 1e-3 * 100 / task.scale if auto else check_number("lr", self.lr, 0, above=True)
        fixed = (
            lr,
            check_number("weight_decay", self.weight_decay, 0),
            check_integer("batch_size", self.batch_size, 2),
        )

        def search(seen: Validation | None) -> tuple[float, Tensor, Run, dict[str, float]]:
            tried = (self.train(task, (lr * 100 / task.scale, decay, size), seen) for lr, decay, size in GRID)
            return max(tried, key=lambda found: found[0])

        fit = self.minimum if self.solver == "convex" else lambda task: self.train(task, fixed, None)
        choice = choose(self.selection, task, lambda: fit(task), search, "the settings")
        _, weights, run, selected = choice.value
        start = text_start(task.text_features)
        head = CosineHead(share * weights + (1 - share) * start, task.scale)
        return Learned.trained(head, run, choice, (), **selected)

    def train(
        self, task: Task, settings: tuple[float, float, int], seen: Validation | None
    ) -> tuple[float, Tensor, Run, dict[str, float]]:
        """Train as published: accuracy on validation images, weights, the run, and what to record."""
        lr, decay, size = settings
        iterations = check_integer("iterations", self.iterations, 1)
        schedule = Rising(
            iterations, lr=lr, seed=self.seed, optimizer="adamw", weight_decay=decay, by_step=True
        )
        text, generator = task.text_features, schedule.generator()
        model = Weights(text_start(text), task.scale)
        images = rows_forever(task.labels, size // 2, generator, task.weights is not None)
        texts = rows_forever(text.classes, size - size // 2, generator, False)

        def epoch() -> Iterator[Batch]:
            rows, words = next(images), next(texts)
            x = torch.cat([task.inputs.sample(rows, generator), text.values[words]])
            yield x, torch.cat([task.labels[rows], text.classes[words]])

        stop = EarlyStop(seen, model)
        run = train(model, epoch, schedule, after_epoch=stop, generator=generator)
        weights = model.weights.detach() if stop.kept is None else stop.kept
        selected = {"lr": lr, "weight_decay": decay, "batch_size": size, "iteration": stop.iteration}
        if seen is None:
            del selected["iteration"]
        return stop.best, weights, run, selected

    def minimum(self, task: Task) -> tuple[float, Tensor, Run, dict[str, float]]:
        """Find the convex minimum: images weigh as much as prompts."""
        values, text = task.features.values, task.text_features  # [N, V, E]
        x = F.normalize(torch.cat([values.flatten(0, 1), text.values]), dim=-1)
        own = torch.ones(len(values)) if task.weights is None else task.weights
        views, words = values.shape[1], len(text.values)
        labels = torch.cat([task.labels.repeat_interleave(views), text.classes])
        weights = torch.cat(
            [own.repeat_interleave(views) / (len(values) * views), torch.full((words,), 1 / words)]
        )
        strength = default_strength(task.labels, task.scale)
        found, losses = probe(
            x, labels, text_start(text), task.scale, torch.full((len(task.class_names),), strength),
            weights * len(x) / 2, most=self.iterations,
        )  # fmt: skip
        return 0.0, found, Run(losses), {"strength": strength}

"""APE-T: residuals of the chosen channels, and a weight for each key, that are trained (Zhu et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from handful.backbones import Backbone
from handful.cache import ALPHAS, BETAS, CacheHead, search, search_held_out
from handful.estimator import FewShotClassifier, Learned, Task, Validation
from handful.heads import Head
from handful.methods.features.ape import checked
from handful.methods.features.ape.channels import channel_count, channel_similarity, choose_channels, share
from handful.schedule import tip_schedule
from handful.selection import choose
from handful.train import Run
from handful.types import Selection, Templates

BATCH_SIZE = 256


class ResidualCache(nn.Module):
    """A cache whose class weights and keys share one residual a class, `[C, Q]`, on some channels `[Q]`."""

    def __init__(self, start: CacheHead, channels: Tensor) -> None:
        super().__init__()
        self.start, self.channels = start, channels
        self.residual = nn.Parameter(torch.zeros(len(start.class_weights), len(channels)))
        self.strengths = nn.Parameter(torch.ones(len(start.keys)))

    def cache(self) -> CacheHead:
        """The cache as it is now."""
        start, moved = self.start, torch.zeros_like(self.start.class_weights)
        moved = moved.index_copy(1, self.channels, self.residual)
        return replace(
            start, class_weights=start.class_weights + moved, keys=start.keys + moved[start.labels],
            strengths=self.strengths,
        )  # fmt: skip

    @property
    def head(self) -> CacheHead:
        """The same, to keep."""
        now, strengths = self.cache(), self.strengths.detach().clone()
        return replace(
            now, class_weights=now.class_weights.detach(), keys=now.keys.detach(), strengths=strengths
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map features `[N, E]` to logits `[N, C]`."""
        return self.cache().read(features)


class APET(FewShotClassifier):
    """A cache and class weights that are trained on the channels which tell classes apart.

    A residual `r [C, Q]`, from zero, is added to the Q channels of each class weight and of all keys of its
    class, and a strength `v [NK]`, from 1, multiplies each key's value (§3.3 and code):

        logits = scale x (W + r)^T + alpha (scale / 100) exp(-beta (1 - x (F + r_Y)^T)) (v Y)

    All E channels are compared, and nothing is normalised again. It starts as Tip-Adapter, and collapses to a
    cache. Channels are chosen as APE does, from the texts alone. The published code looks up the number of
    channels, epochs and alpha for each data set and keeps the epoch that is best on validation images; here
    they are the same for every task, and the last epoch is kept.

    Parameters
    ----------
    backbone
        A backbone, or the name of one.
    channels
        Q: a whole number, or a share of E between 0 and 1.
    variance
        Weight of the variance between texts in the choice of channels, 0 to 1.
    alpha, beta
        Of the cache while it is trained: residual ratio at scale 100, and sharpness.
    selection
        `"fixed"`: alpha and beta as given. Otherwise they are searched after training: `"support"`, on images
        that were held out of up to four trainings more, as for Tip-Adapter-F; `"val"`, on
        `fit(..., validation=)`; `"oracle"`, on the test set given there.
    epochs, lr
        Of AdamW with epsilon 1e-3 and weight decay 0.1, batches of 256, a cosine at every step.
    templates
        Of the text classifier.
    views
        Each key is the mean of its views, and training draws one view at each step; `"online"` is a fresh
        crop at every step, as published.
    training
        As for CoOp.
    seed
        Of the views and of the order of the images.
    balance
        Whether classes count alike where they have unequal numbers of images: values as for Tip-Adapter, and
        training draws as many images of each class.
    class_names
        Names of the classes, for labels that scikit-learn encodes as integers; see `fit`.
    """

    method: ClassVar[str] = "ape-t"
    head_type: ClassVar[type[Head]] = CacheHead
    trains: ClassVar[bool] = True

    def __init__(
        self,
        backbone: Backbone | str | None = None,
        *,
        channels: float = 0.8,
        variance: float = 0.8,
        alpha: float = 2.0,
        beta: float = 1.0,
        selection: Selection = "fixed",
        epochs: int = 30,
        lr: float = 0.001,
        templates: Templates = "default",
        views: int | Literal["online"] = 10,
        training: dict[str, Any] | None = None,
        seed: int = 0,
        balance: bool = True,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.backbone, self.channels, self.variance = backbone, channels, variance
        self.alpha, self.beta, self.selection, self.epochs, self.lr = alpha, beta, selection, epochs, lr
        self.templates, self.views, self.training, self.seed = templates, views, training, seed
        self.balance, self.class_names = balance, class_names

    def learner(self, task: Task) -> ResidualCache:
        """Give what is trained, at its start."""
        alpha, beta, _ = checked(self.alpha, self.beta, 0)
        text, labels = task.class_weights, task.labels
        count, variance = channel_count(self.channels, text.shape[1]), share("variance", self.variance)
        channels = choose_channels(text, channel_similarity(text, text[:0], labels[:0]), count, variance)
        scaled = alpha * task.scale / 100
        start = CacheHead(text, task.inputs.directions(), labels, task.scale, scaled, beta, self.balances())
        return ResidualCache(start, channels)

    def train(self, task: Task) -> tuple[CacheHead, Run]:
        """Train on the support set, or a part of it."""
        schedule = tip_schedule(self.epochs, BATCH_SIZE, self.lr, self.seed)
        schedule = replace(schedule, eps=1e-3, weight_decay=0.1).change(self.training)
        model = self.learner(task)
        run = task.train(model, schedule, schedule.generator())
        return model.head, run

    def learn(self, task: Task) -> Learned:
        """Train, and choose alpha and beta afterwards if asked."""
        ranges = ALPHAS[0] * task.scale / 100, ALPHAS[1] * task.scale / 100

        def search_after(seen: Validation | None) -> tuple[CacheHead, Run]:
            head, run = self.train(task)
            if seen is not None:
                found = search(head, seen, ranges, BETAS)
            else:
                start = self.learner(task).start
                found = search_held_out(start, lambda kept: self.train(task.choose(kept))[0], ranges, BETAS)
            return replace(head, alpha=found.alpha, beta=found.beta), run

        choice = choose(self.selection, task, lambda: self.train(task), search_after, "alpha and beta")
        head, run = choice.value
        return Learned.trained(head, run, choice, alpha=head.alpha * 100 / task.scale, beta=head.beta)

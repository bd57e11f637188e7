"""TaskRes: a residual on the text classifier, independent of the text tower (Yu et al. 2023, Task Residual
for Tuning Vision-Language Models)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handful.backbones import Backbone
from handful.errors import check_number
from handful.estimator import FewShotClassifier, Learned, Task
from handful.heads import CosineHead
from handful.schedule import COOP_CROPS, IMAGENET, Schedule
from handful.types import Templates

AT_100, MANY = 2e-3, 2e-4
"""Published learning rates: of all data sets, and of ImageNet."""


class Residual(nn.Module):
    """`scale norm(f) norm(t + alpha x)^T`: t `[C, E]` raw text features, x `[C, E]` trained."""

    def __init__(self, text: Tensor, alpha: float, scale: float) -> None:
        super().__init__()
        self.text, self.alpha, self.scale = text, alpha, scale
        self.residual = nn.Parameter(torch.zeros_like(text))

    def class_weights(self) -> Tensor:
        """`[C, E]`, rows of unit norm."""
        return F.normalize(self.text + self.alpha * self.residual, dim=-1)

    def forward(self, features: Tensor) -> Tensor:
        """Map features `[N, E]` to logits `[N, C]`."""
        return CosineHead(self.class_weights(), self.scale).read(features)


class TaskRes(FewShotClassifier):
    """Class weights `norm(t + alpha x)`: a residual x of each class, on frozen raw text features t.

    x starts at 0, where this is zero-shot. The length of t decides how far a step
    turns a class weight, so t is the mean of the raw features of its prompts, and class weights that
    are given, of unit norm, count as 8.7 long, as CLIP's are. (The article's "enhanced" base
    classifier is another text projection for each data set, shipped as files: it is not here.)

    Parameters
    ----------
    backbone
        A backbone, or the name of one.
    alpha
        Scale of the residual; .5 is the published one (1 for Flowers102).
    templates
        Of the text classifier.
    epochs
        `"auto"`: the published 100 up to 4 images of a class in the mean, 200 above.
    lr
        `"auto"`: the published 2e-3, 2e-4 from 1,000 classes on, at CLIP's scale of 100; times
        `100 / scale` at another, where a step of Adam moves the logits as much.
    batch_size
        256 as published.
    views, training, seed, balance
        As for CoOp. Adam has the L2 penalty 5e-4 of the published code (`weight_decay` of `training`).
    class_names
        Names of the classes, for labels that scikit-learn encodes as integers; see `fit`.
    """

    method: ClassVar[str] = "taskres"
    trains: ClassVar[bool] = True
    crop_scale: ClassVar[tuple[float, float]] = COOP_CROPS

    def __init__(
        self,
        backbone: Backbone | str | None = None,
        *,
        alpha: float = 0.5,
        templates: Templates = "default",
        epochs: int | Literal["auto"] = "auto",
        lr: float | Literal["auto"] = "auto",
        batch_size: int = 256,
        views: int | Literal["online"] = 8,
        training: dict[str, Any] | None = None,
        seed: int = 0,
        balance: bool = True,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.backbone, self.alpha, self.templates = backbone, alpha, templates
        self.epochs, self.lr, self.batch_size = epochs, lr, batch_size
        self.views, self.training, self.seed, self.balance = views, training, seed, balance
        self.class_names = class_names

    def schedule(self, task: Task, **own: Any) -> Schedule:
        """Give the published settings, the `"auto"` ones found out."""
        if isinstance(self.epochs, str) and self.epochs == "auto":
            own["epochs"] = 100 if len(task.labels) <= 4.5 * max(len(task.labels.unique()), 1) else 200
        if isinstance(self.lr, str) and self.lr == "auto":
            published = MANY if len(task.class_names) >= IMAGENET else AT_100
            own["lr"] = published * 100 / task.scale
        return super().schedule(task, optimizer="adam", **own)

    def learn(self, task: Task) -> Learned:
        """Train the residual."""
        alpha, schedule = check_number("alpha", self.alpha, 0, above=True), self.schedule(task)
        model = Residual(task.text_features.means_as_clips(task.scale), alpha, task.scale)
        run = task.train(model, schedule, schedule.generator())
        head = CosineHead(model.class_weights().detach(), task.scale)
        return Learned.trained(head, run, epochs=schedule.epochs, lr=schedule.lr)

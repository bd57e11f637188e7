"""What CoOp was compared with: tuning the text features themselves (Zhou et al. 2022, §4.2, table 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handful.backbones import Backbone
from handful.errors import unexpected
from handful.estimator import FewShotClassifier, Learned, Task
from handful.heads import CosineHead, Head, Shapes, TextHead
from handful.schedule import COOP_CROPS
from handful.types import Templates

FORMS = ("transform", "bias", "class-bias")


class TunedText(nn.Module):
    """Class weights `W [C, E]` with a learned `norm(W A)` or `norm(W + b)`.

    The article names the two and no more; here A `[E, E]` starts as the identity and b `[E]`, or
    `[C, E]`, at zero, both on text features of unit norm.
    """

    def __init__(self, text: Tensor, form: str, scale: float) -> None:
        super().__init__()
        self.text, self.form, self.scale = text, form, scale
        classes, width = text.shape
        start = {"transform": torch.eye(width), "bias": torch.zeros(width)}
        self.tuned = nn.Parameter(start.get(form, torch.zeros(classes, width)))

    def class_weights(self) -> Tensor:
        """`[C, E]`, rows of unit norm."""
        moved = self.text @ self.tuned if self.form == "transform" else self.text + self.tuned
        return F.normalize(moved, dim=-1)

    def forward(self, features: Tensor) -> Tensor:
        """Map features `[N, E]` to logits `[N, C]`."""
        return CosineHead(self.class_weights(), self.scale).read(features)


class TextTuning(FewShotClassifier):
    """A learned transformation of the text features, or a bias on them: baselines of the CoOp article.

    Parameters
    ----------
    backbone
        A backbone, or the name of one.
    form
        `"transform"`: one matrix for all classes. `"bias"`: one vector for all. `"class-bias"`: a
        vector for each class (TaskRes, but for its scale).
    templates
        Of the text classifier that is tuned.
    epochs, lr, batch_size, views, training, seed, balance
        As for CoOp.
    class_names
        Names of the classes, for labels that scikit-learn encodes as integers; see `fit`.
    """

    method: ClassVar[str] = "text-tuning"
    trains: ClassVar[bool] = True
    crop_scale: ClassVar[tuple[float, float]] = COOP_CROPS
    head_type: ClassVar[type[Head]] = TextHead

    def __init__(
        self,
        backbone: Backbone | str | None = None,
        *,
        form: Literal["transform", "bias", "class-bias"] = "transform",
        templates: Templates = "default",
        epochs: int | Literal["auto"] = "auto",
        lr: float = 0.002,
        batch_size: int = 32,
        views: int | Literal["online"] = 8,
        training: dict[str, Any] | None = None,
        seed: int = 0,
        balance: bool = True,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.backbone, self.form, self.templates = backbone, form, templates
        self.epochs, self.lr, self.batch_size = epochs, lr, batch_size
        self.views, self.training, self.seed, self.balance = views, training, seed, balance
        self.class_names = class_names

    def learn(self, task: Task) -> Learned:
        """Train the matrix or the bias."""
        if self.form not in FORMS:
            raise unexpected("form", self.form, f"one of {list(FORMS)}")
        schedule = self.schedule(task)
        model = TunedText(task.class_weights, self.form, task.scale)
        run = task.train(model, schedule, schedule.generator())
        head = self.build(task, {"tuned": model.tuned.detach()})
        return Learned.trained(head, run, epochs=schedule.epochs)

    def learned_shapes(self, classes: int, backbone: Backbone | None) -> Shapes:
        """The matrix, or the bias."""
        width = backbone.joint_width if backbone else "E"
        shapes: Shapes = {"transform": (width, width), "bias": (width,), "class-bias": (classes, width)}
        return {"tuned": shapes[self.form]} if isinstance(self.form, str) and self.form in shapes else {}

    def check_transfer(self) -> None:
        """Refuse biases that belong to their classes."""
        if self.form == "class-bias":
            raise unexpected("form", self.form, "'transform' or 'bias' to serve other class names")

    @torch.no_grad()
    def build(self, task: Task, learned: dict[str, Tensor]) -> TextHead:
        """Collapse to class weights."""
        model = TunedText(task.class_weights, self.form, task.scale)
        model.load_state_dict(learned)
        return TextHead(model.class_weights(), task.scale, learned)

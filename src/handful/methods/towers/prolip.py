"""ProLIP: the image tower's final projection, tuned near its start (Fahes et al. 2024, Fine-Tuning CLIP's
Last Visual Projector: A Few-Shot Cornucopia)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar, Literal, Self

import torch.nn.functional as F
from torch import Tensor, nn

from handful.backbones import Backbone
from handful.backbones.base import final_projection
from handful.convex.adapter import adapted
from handful.errors import CheckpointError, SeamError, check_integer, check_number, unexpected
from handful.estimator import FewShotClassifier, Learned, Task
from handful.heads import Head, HeadContext, Needs, Shapes, TextHead, expect
from handful.schedule import Schedule
from handful.towers.pair import image_encoder
from handful.train import Batch, Run, train
from handful.types import Templates

TOLERANCE = 1e-3
"""Share of the gradient that is left at the minimum."""


class Projection(nn.Module):
    """`scale norm(h P + b) T^T`, P trained and b frozen, and the penalty `strength |P - P0|^2` (a sum)."""

    def __init__(self, projection: Tensor, bias: Tensor, text: Tensor, scale: float, strength: float) -> None:
        super().__init__()
        self.projection, self.start = nn.Parameter(projection.clone()), projection
        self.bias, self.text, self.scale, self.strength = bias, text, scale, strength

    def forward(self, hidden: Tensor) -> Tensor:
        """Map what enters the projection `[N, H]` to logits `[N, C]`."""
        return self.scale * F.normalize(hidden @ self.projection + self.bias, dim=-1) @ self.text.T

    def loss(self, hidden: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Cross-entropy of a view of the support set, and the penalty."""
        each = F.cross_entropy(self(hidden), labels, reduction="none")
        penalty = self.strength * (self.projection - self.start).square().sum()
        return (each if weights is None else weights * each).mean() + penalty


@dataclass(frozen=True)
class ProjectionHead(TextHead):
    """Class weights, and a projection of its own: `projection [H, E]`, `bias [E]`."""

    kind: ClassVar[str] = "projection"

    @property
    def needs(self) -> Needs:
        """What enters the image tower's final projection."""
        return "hidden"

    @property
    def width(self) -> int:
        """H."""
        return len(self.learned["projection"])

    def image_features(self, x: Tensor) -> Tensor:
        """Project `[N, H]` to unit features `[N, E]`."""
        return F.normalize(x @ self.learned["projection"] + self.learned["bias"], dim=-1)

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], settings: dict[str, Any], context: HeadContext) -> Self:
        """Check the projection against the class weights and the backbone, and build."""
        rows = len(context.class_names)
        expect(tensors, {"class_weights": (rows, "E"), "projection": ("H", "E"), "bias": ("E",)})
        if context.backbone is not None and len(tensors["bias"]) != context.backbone.joint_width:
            wide = len(tensors["bias"])
            raise CheckpointError(f"Got a projection to {wide}, expected {context.backbone.joint_width}.")
        return super().restore(tensors, settings, context)


class ProLIP(FewShotClassifier):
    """The last matrix of the image tower, trained on what enters it; text stays, so other names are served.

    With `h` what enters the projection P `[H, E]` (a ResNet's bias stays), `P0` the backbone's and `T [C, E]`
    the text classifier,

        cross_entropy(scale norm(h P) T^T, y) + strength |P - P0|^2

    with the sum of squares. No validation set: the strength follows from the shots.

    Parameters
    ----------
    backbone
        A backbone whose image tower ends in a linear projection, or the name of one.
    strength
        Of the penalty. `"shots"`: `1 / K` for K images of a class in the mean; `"squared-shots"`: `1 / K^2`,
        the other published choice, as good; both times `(scale / 100)^2`. A number is taken as it is.
    solver
        `"published"`: Adam (eps 1e-4) with a cosine over `epochs` steps, the whole support set at each, one
        view after the other. `"minimum"`: L-BFGS on all views together, to the end. The published one stops
        on its way, which is part of what keeps it near CLIP, and is the default.
    templates
        Of the text classifier.
    epochs
        Steps of Adam, or evaluations of the loss at most.
    lr
        `"auto"` is the published 1e-5 at CLIP's scale of 100 and `1e-5 (100 / scale)^2` at another,
        where 1e-5 hardly moves anything.
    views
        Augmented views of each image; the published recipe has 300, one for each step. 0 takes the image.
    seed
        Of the views.
    balance
        Whether classes count alike where they have unequal numbers of images: the cross-entropy is then the
        mean over classes of its mean over their images.
    class_names
        Names of the classes, for labels that scikit-learn encodes as integers; see `fit`.
    """

    method: ClassVar[str] = "prolip"
    uses_image_tower: ClassVar[bool] = True
    head_type: ClassVar[type[Head]] = ProjectionHead

    def __init__(
        self,
        backbone: Backbone | str | None = None,
        *,
        strength: float | Literal["shots", "squared-shots"] = "shots",
        solver: Literal["published", "minimum"] = "published",
        templates: Templates = "default",
        epochs: int = 300,
        lr: float | Literal["auto"] = "auto",
        views: int = 10,
        seed: int = 0,
        balance: bool = True,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.backbone, self.strength, self.solver, self.templates = backbone, strength, solver, templates
        self.epochs, self.lr, self.views, self.seed, self.balance = epochs, lr, views, seed, balance
        self.class_names = class_names

    def find_strength(self, task: Task) -> float:
        """Give the strength as a number."""
        power = {"shots": 1, "squared-shots": 2}.get(self.strength) if isinstance(self.strength, str) else 0
        if power is None:
            raise unexpected("strength", self.strength, "a number, 'shots' or 'squared-shots'")
        if not power:
            return check_number("strength", self.strength, 0)
        shots = len(task.labels) / max(len(task.labels.unique()), 1)
        return (task.scale / 100) ** 2 / shots**power

    def learn(self, task: Task) -> Learned:
        """Train the projection."""
        if self.solver not in ("published", "minimum"):
            raise unexpected("solver", self.solver, "'published' or 'minimum'")
        epochs, strength = check_integer("epochs", self.epochs, 1), self.find_strength(task)
        hidden, found = task.hidden, final_projection(image_encoder(task.backbone))
        if found is None:
            raise SeamError("ProLIP trains the final linear projection of an image tower: this has none.")
        start, bias = (part.cpu() for part in found)
        if self.solver == "minimum":
            views = hidden.shape[1]
            x, labels = hidden.flatten(0, 1), task.labels.repeat_interleave(views)
            weights = None if task.weights is None else task.weights.repeat_interleave(views)
            moved, losses = adapted(
                x, labels, task.class_weights, task.scale, strength * (100 / task.scale) ** 2, weights,
                steps=epochs, tolerance=TOLERANCE, features=x @ start + bias,
            )  # fmt: skip
            projection, run = start + moved, Run(losses)
        else:
            model = Projection(start, bias, task.class_weights, task.scale, strength)
            run = self.train(model, task, epochs)
            projection = model.projection.detach()
        head = self.build(task, {"projection": projection, "bias": bias})
        return Learned.trained(head, run, strength=strength)

    def train(self, model: Projection, task: Task, epochs: int) -> Run:
        """Take the published steps."""
        auto = isinstance(self.lr, str) and self.lr == "auto"
        lr = 1e-5 * (100 / task.scale) ** 2 if auto else check_number("lr", self.lr, 0, above=True)
        schedule = Schedule(
            epochs, lr=lr, optimizer="adam", eps=1e-4, weight_decay=0.0, warmup_lr=None, by_step=True
        )
        return train(
            model, one_view_each(task.hidden, task.labels), schedule,
            loss=lambda _, batch: model.loss(batch[0], batch[1], task.weights),
        )  # fmt: skip

    def learned_shapes(self, classes: int, backbone: Backbone | None) -> Shapes:
        """The projection and its bias."""
        width = backbone.joint_width if backbone else "E"
        return {"projection": ("H", width), "bias": (width,)}

    def build(self, task: Task, learned: dict[str, Tensor]) -> ProjectionHead:
        """Keep the projection beside the text classifier."""
        return ProjectionHead(task.class_weights, task.scale, learned)


def one_view_each(hidden: Tensor, labels: Tensor) -> Callable[[], list[Batch]]:
    """Give epochs of one step: the whole support set, one view after the other, from the second on."""
    step = count(1)
    return lambda: [(hidden[:, next(step) % hidden.shape[1]], labels)]

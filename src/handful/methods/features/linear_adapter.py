"""The regularised linear adapter: one matrix that moves all images (Fahes et al. 2024, Fine-Tuning CLIP's
Last Visual Projector, and its code)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from handful.backbones import Backbone
from handful.convex.adapter import adapted
from handful.errors import check_integer, check_number
from handful.estimator import FewShotClassifier, Learned, Task
from handful.heads import Head, MatrixHead, Shapes
from handful.train import Run
from handful.types import Templates

TOLERANCE = 1e-3
"""Share of the gradient that is left at the minimum."""


class LinearAdapter(FewShotClassifier):
    """Image features that move by a matrix, to where their names are; class weights stay.

    With `x` the unit features and `T [C, E]` the text classifier, a minimum over `M [E, E]` of

        cross_entropy(scale norm(x + x M) T^T, y) + strength (scale / 100)^2 |M|^2

    with the sum of squares. It moves images, not classes, so what it learned serves other names too. The
    published code trains `1 + M` by Adam; here L-BFGS starts at 0 and goes to the minimum, which needs 20 to
    40 evaluations and has no learning rate.

    Parameters
    ----------
    backbone
        A backbone, or the name of one.
    strength
        Of the penalty, at CLIP's scale of 100.
    templates
        Of the text classifier.
    max_iter
        At most this many evaluations of the loss.
    views
        Augmented views of each image to fit on; 0 takes the image itself.
    seed
        Of the views.
    balance
        Whether classes count alike where they have unequal numbers of images: the cross-entropy is then the
        mean over classes of its mean over their images.
    class_names
        Names of the classes, for labels that scikit-learn encodes as integers; see `fit`.
    """

    method: ClassVar[str] = "linear-adapter"
    head_type: ClassVar[type[Head]] = MatrixHead

    def __init__(
        self,
        backbone: Backbone | str | None = None,
        *,
        strength: float = 0.01,
        templates: Templates = "default",
        max_iter: int = 100,
        views: int = 0,
        seed: int = 0,
        balance: bool = True,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.backbone, self.strength, self.templates = backbone, strength, templates
        self.max_iter, self.views, self.seed, self.balance = max_iter, views, seed, balance
        self.class_names = class_names

    @property
    def n_iter_(self) -> int:
        """Evaluations of the last fit, at most `max_iter`."""
        return len(self.losses_)

    def learn(self, task: Task) -> Learned:
        """Find the minimum."""
        strength = check_number("strength", self.strength, 0)
        most = check_integer("max_iter", self.max_iter, 1)
        values = task.features.values  # [N, V, E]
        views = values.shape[1]
        x, labels = F.normalize(values.flatten(0, 1), dim=-1), task.labels.repeat_interleave(views)
        weights = None if task.weights is None else task.weights.repeat_interleave(views)
        adapter, losses = adapted(
            x, labels, task.class_weights, task.scale, strength, weights, steps=most, tolerance=TOLERANCE
        )
        return Learned.trained(self.build(task, {"adapter": adapter}), Run(losses), strength=strength)

    def learned_shapes(self, classes: int, backbone: Backbone | None) -> Shapes:
        """The matrix."""
        width = backbone.joint_width if backbone else "E"
        return {"adapter": (width, width)}

    def build(self, task: Task, learned: dict[str, Tensor]) -> MatrixHead:
        """Keep the matrix beside the text classifier."""
        return MatrixHead(task.class_weights, task.scale, learned)

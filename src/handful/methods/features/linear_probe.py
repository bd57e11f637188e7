"""A linear probe that starts from the text classifier and stays near it: ZS-LP and CLAP (Silva-Rodríguez
et al. 2024, A Closer Look at the Few-Shot Adaptation of Large Vision-Language Models)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handful.backbones import Backbone
from handful.errors import check_integer, check_number
from handful.estimator import FewShotClassifier, Learned, Task
from handful.heads import CosineHead
from handful.train import descend
from handful.types import Templates

TOLERANCE = 1e-4


class LinearProbe(FewShotClassifier):
    """Class weights that move from the text classifier to where the support set wants them.

    With `x` the unit features and `T [C, E]` the text classifier, the minimum over `W [C, E]` of

        cross_entropy(scale x W^T, y) + strength mean_c lambda_c |w_c - t_c|^2

    where `lambda_c` is the mean zero-shot probability of class c over its own support images (CLAP,
    §4.2): a class whose name says much stays near its name. There is nothing to choose, and so no
    validation set. The published code normalises the rows of W and stops SGD after 300 epochs; here
    they are free, which makes the problem convex: the answer is its minimum, whatever the seed.

    Parameters
    ----------
    backbone
        A backbone, or the name of one.
    strength
        Of the constraint. 1 is CLAP's; 0 is ZS-LP, which only starts at the text classifier.
    templates
        Of the text classifier.
    max_iter
        At most this many steps of L-BFGS.
    views
        Augmented views of each image to fit on; 0 takes the image itself.
    seed
        Of the views.
    balance
        Whether classes count alike where they have unequal numbers of images: the cross-entropy is then the
        mean over classes of its mean over their images. The constraint is a mean over classes as it is.
    class_names
        Names of the classes, for labels that scikit-learn encodes as integers; see `fit`.
    """

    method: ClassVar[str] = "linear-probe"
    trusts_names: ClassVar[bool] = False

    def __init__(
        self,
        backbone: Backbone | str | None = None,
        *,
        strength: float = 1.0,
        templates: Templates = "default",
        max_iter: int = 300,
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
        """Steps that the last fit took, at most `max_iter`."""
        return len(self.losses_)

    def learn(self, task: Task) -> Learned:
        """Find the minimum."""
        strength = check_number("strength", self.strength, 0)
        most = check_integer("max_iter", self.max_iter, 1)
        values, text = task.features.values, task.class_weights  # [N, V, E], [C, E]
        x = F.normalize(values.flatten(0, 1), dim=-1)
        views = values.shape[1]
        labels = task.labels.repeat_interleave(views)
        weights = None if task.weights is None else task.weights.repeat_interleave(views)
        anchors = strength * class_confidence(task.scale * x @ text.T, labels)
        model = MovedWeights(text, x, task.scale)

        def loss() -> Tensor:
            constraint = (anchors * model.moved().square().sum(1)).mean()
            if weights is None:
                return F.cross_entropy(model(x), labels) + constraint
            return (weights * F.cross_entropy(model(x), labels, reduction="none")).mean() + constraint

        losses = descend(model, loss, most, TOLERANCE)
        head = CosineHead(model.class_weights().detach(), task.scale)
        return Learned(head, selected={"strength": strength}, losses=tuple(losses))


def class_confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean zero-shot probability of each class over its own images, `[C]`: CLAP's lambda; 1 without any."""
    classes = logits.shape[1]
    own = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    counts = torch.bincount(labels, minlength=classes)
    sums = own.new_zeros(classes).index_add_(0, labels, own)
    return torch.where(counts > 0, sums / counts.clamp(min=1), 1.0)


class MovedWeights(nn.Module):
    """`W = T + V P`, so that a step in V goes as far along rare directions of the features as along common
    ones: `P = (X^T X / N + m I)^(-1/2)`, m the mean eigenvalue. The minimum is the same, and near."""

    def __init__(self, text: Tensor, x: Tensor, scale: float) -> None:
        super().__init__()
        self.text, self.scale = text, scale
        values, vectors = torch.linalg.eigh(x.T @ x / len(x))
        self.whitening = vectors * (values.clamp(min=0) + values.mean()).rsqrt() @ vectors.T
        self.steps = nn.Parameter(torch.zeros_like(text))

    def moved(self) -> Tensor:
        """`W - T`, `[C, E]`."""
        return self.steps @ self.whitening

    def class_weights(self) -> Tensor:
        """W `[C, E]`; its rows are of any length."""
        return self.text + self.moved()

    def forward(self, x: Tensor) -> Tensor:
        """Map unit features `[N, E]` to logits `[N, C]`."""
        return self.scale * x @ self.class_weights().T

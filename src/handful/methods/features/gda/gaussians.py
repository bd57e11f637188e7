"""The Gaussians of a support set: how a scatter becomes a precision, and what alpha multiplies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from handful.balance import effective_number
from handful.left_out.gda import Moments, Shrunk
from handful.methods.features.gda.head import DiscriminantHead
from handful.methods.features.gda.transfer import base_gaussians, new_gaussians


def published(moments: Moments) -> Shrunk:
    """`E pinv((n - 1) S + tr(S) I)` with `S = scatter / (n - 1)`, n the vectors (equation 6; Kubokawa and
    Srivastava 2008): 0 where no class has two different vectors."""
    if not moments.trace:
        return Shrunk(0.0, 1.0)
    return Shrunk(len(moments.scatter), moments.trace / max(int(moments.counts.sum()) - 1, 1))


def dimensionless(moments: Moments, by_images: bool = False) -> Shrunk:
    """`(1 + e) (S / t + e I)^-1`, t the mean variance of a dimension and `e = E / (N - 1)`, N the images: I
    where variances are all alike, or where no class has two different vectors."""
    width, images, variance = (
        len(moments.scatter),
        int(moments.images.sum()),
        moments.trace / len(moments.scatter),
    )
    if not variance:
        return Shrunk(1.0, 1.0)
    shrinkage = width / max(images - 1, 1e-6)
    share = (1 + shrinkage) * variance / int(moments.counts.sum()) if by_images else 0.0
    return Shrunk((1 + shrinkage) * variance, shrinkage * variance, share)


@dataclass(frozen=True)
class Gaussians:
    """What alpha multiplies, and what it is added to."""

    class_weights: Tensor
    scale: float
    keys: Tensor
    """Every view of unit norm, `[N, V, E]`."""
    labels: Tensor
    weight: Tensor
    bias: Tensor
    precision: Tensor
    shots: float
    """K, or 1 for a form whose alpha is no weight of an image."""

    def head(self, alpha: float) -> DiscriminantHead:
        """Add them to the text classifier."""
        gain = alpha * self.shots
        return DiscriminantHead(
            self.class_weights, (self.scale * self.class_weights + gain * self.weight).float(),
            (gain * self.bias).float(), (gain * self.precision).float(), self.keys, self.labels, self.scale,
        )  # fmt: skip

    def logits(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Give zero-shot logits and what each unit of alpha adds, `[N, C]` both, for raw features."""
        x = F.normalize(features, dim=-1).double()
        base = self.scale * x @ self.class_weights.double().T
        return base, self.shots * (x @ self.weight.T + self.bias)


def mean_shots(images: Tensor) -> float:
    """The harmonic mean of the numbers of images of the classes that have any: one for equal classes."""
    return effective_number(images) / max(int((images > 0).sum()), 1)


def base_and_new(keys: Tensor, labels: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Give weights, biases and the base precision: classes with images are base, the others new.

    Each kind has the prior of its own number of classes, as where they are told apart in separate tests.
    """
    x, marks = keys.flatten(0, 1).double(), labels.repeat_interleave(keys.shape[1])
    base = torch.bincount(labels, minlength=len(text)) > 0
    number = base.cumsum(0) - 1
    weight, bias = torch.zeros(text.shape, dtype=x.dtype), x.new_zeros(len(text))
    known = base_gaussians(x, number[marks], int(base.sum()))
    weight[base], bias[base] = known.discriminants()
    if not bool(base.all()):
        weight[~base], bias[~base] = new_gaussians(x, text[~base].double()).discriminants()
    return weight, bias, known.precision

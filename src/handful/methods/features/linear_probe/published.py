"""ZS-LP and CLAP as published: prototypes of any length, SGD (Silva-Rodríguez et al. 2024, §4 and code)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handful.balance import balanced_order
from handful.convex.probe import class_confidence
from handful.train import Batch

BATCH = 256
CONSTRAINTS = ("probability", "balanced", "corrected", "constant", "adaptive")


def multipliers(logits: Tensor, labels: Tensor, constraint: str) -> Tensor:
    """Give lambda of each class `[C]` from zero-shot logits `[N, C]` of the support set.

    `"probability"`: the mean zero-shot probability of a class over its own images. `"balanced"`: 1.
    `"corrected"`: the same with mean 1. `"constant"`: its mean for all. `"adaptive"` starts as the first.
    Means are over classes with images, and a class without counts 1.
    """
    found = class_confidence(logits, labels)
    seen = torch.bincount(labels, minlength=len(found)) > 0
    if constraint == "balanced":
        return torch.ones_like(found)
    mean = found[seen].mean()
    if constraint == "constant":
        return mean.expand_as(found)
    return torch.where(seen, found / mean, 1.0) if constraint == "corrected" else found


class Prototypes(nn.Module):
    """`scale norm(f) norm(W)^T`, and the penalty `mean_c lambda_c |w_c - t_c|^2` on raw text features t.

    The length of t decides how far a step turns a prototype, as in the published code.
    """

    def __init__(self, text: Tensor, scale: float, lambdas: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(text.clone())
        self.register_buffer("text", text)
        self.register_buffer("lambdas", lambdas.clone())
        self.register_buffer("rho", torch.zeros_like(lambdas))
        self.scale = scale
        self.text: Tensor
        self.lambdas: Tensor
        self.rho: Tensor

    def class_weights(self) -> Tensor:
        """`[C, E]`, rows of unit norm."""
        return F.normalize(self.weights, dim=-1)

    def forward(self, features: Tensor) -> Tensor:
        """Map features `[N, E]` to logits `[N, C]`."""
        return self.scale * F.normalize(features, dim=-1) @ self.class_weights().T

    def moved(self) -> Tensor:
        """Squared way of each prototype from its text, `[C]`."""
        return (self.weights - self.text).square().sum(1)

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy and the penalty."""
        return F.cross_entropy(self(batch[0]), batch[1]) + (self.lambdas * self.moved()).mean()

    @torch.no_grad()
    def adapt_lambdas(self) -> None:
        """Take the outer step of the augmented Lagrangian: `lambda += rho h`, then `rho = h`, h the way."""
        now = self.moved()
        self.lambdas += self.rho * now
        self.rho = now


def pool_batches(
    x: Tensor, labels: Tensor, images: int, generator: torch.Generator, balance: bool
) -> Iterator[Batch]:
    """Give one epoch: as many batches of a shuffled pool of views as the images alone would make."""
    order = balanced_order(labels, generator) if balance else torch.randperm(len(x), generator=generator)
    for rows in order.split(BATCH)[: max(images // BATCH, 1)]:
        yield x[rows], labels[rows], rows

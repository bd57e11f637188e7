"""GDA from base classes to new ones, of which there are names alone (Wang et al. 2024, section 3.3; code)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from handful.errors import DataError

NEIGHBOURS, COPIES = 64, 16
"""Vectors nearest to a new name that stand for its images, and how often the name itself stands beside
them."""


@dataclass(frozen=True)
class Gaussians:
    """Means `[C, E]` and the precision `[E, E]` that they share; the prior is uniform."""

    means: Tensor
    precision: Tensor

    def discriminants(self) -> tuple[Tensor, Tensor]:
        """Give `P mu_c [C, E]`, and `log(1 / C) - mu_c P mu_c / 2 [C]`."""
        weight = self.means @ self.precision
        return weight, -(weight * self.means).sum(1) / 2 - math.log(max(len(weight), 1))


def base_gaussians(x: Tensor, labels: Tensor, classes: int) -> Gaussians:
    """Estimate base classes from vectors `[n, E]` of each: the precision is `pinv(mean_c cov_c)`, not shrunk.

    Raises
    ------
    DataError
        A class has one vector, which has no covariance.
    """
    counts = torch.bincount(labels, minlength=classes)
    if classes == 0 or int(counts.min()) < 2:
        raise DataError(
            "form='base-to-new' needs two vectors of every class that has images: give two images of each, "
            "or views=2 and more."
        )
    means = torch.zeros(classes, x.shape[1], dtype=x.dtype).index_add_(0, labels, x) / counts[:, None]
    spread = (x - means[labels]) / (counts[labels] - 1).sqrt()[:, None]
    # The tolerance is float32's, the precision that the published code computes in.
    cut = x.shape[1] * torch.finfo(torch.float32).eps
    return Gaussians(means, torch.linalg.pinv(spread.T @ spread / classes, rtol=cut, hermitian=True))


def new_gaussians(x: Tensor, names: Tensor) -> Gaussians:
    """Estimate new classes from their class weights `[C, E]` and the vectors `[n, E]` of the base classes.

    A class's mean is that of the `NEIGHBOURS` vectors nearest to its name and `COPIES` of the name. The
    precision is the mean over classes of `E (D^T D + |D|^2 / (NEIGHBOURS - 1) I)^-1`, D the neighbours less
    the name.

    Raises
    ------
    DataError
        There are fewer vectors than neighbours.
    """
    if len(x) < NEIGHBOURS:
        raise DataError(
            f"form='base-to-new' looks at the {NEIGHBOURS} vectors nearest to a class without images, and "
            f"there are {len(x)}: give more images or views, or form='dimensionless'."
        )
    means, precision = torch.empty_like(names), x.new_zeros(x.shape[1], x.shape[1])
    for row, name in enumerate(names):
        near = x[(x @ name).topk(NEIGHBOURS).indices]
        means[row] = (near.sum(0) + COPIES * name) / (NEIGHBOURS + COPIES)
        away = near - name
        ridge = away.square().sum() / (NEIGHBOURS - 1)
        inner = away @ away.T + ridge * torch.eye(NEIGHBOURS, dtype=x.dtype)
        precision -= away.T @ torch.linalg.solve(inner, away) / ridge  # Woodbury
        precision.diagonal().add_(1 / ridge)
    return Gaussians(means, x.shape[1] * precision / max(len(names), 1))

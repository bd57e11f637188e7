"""Gaussian discriminants with images left out: moments that images enter and leave, and precisions that
follow.

The class means and the pooled scatter of a support set change by a few rows when images leave, so one
eigendecomposition serves all folds (Sherman-Morrison-Woodbury). All views of an image leave together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor

NOTHING = 1e-10
"""A scatter below this share of the vectors' own squares is rounding: no class has two different vectors."""


class Shrunk(NamedTuple):
    """How a scatter becomes a precision: `factor (scatter + ridge I)^-1`; and what the logarithm of a class's
    share of the images is worth beside it."""

    factor: float
    ridge: float
    prior: float = 0.0


Rule = Callable[["Moments"], Shrunk]
"""Chooses the shrinkage by the moments that are left."""


@dataclass(frozen=True)
class Moments:
    """What a Gaussian of each class with one covariance needs of the support set, in float64.

    Attributes
    ----------
    counts, images
        Vectors (every view of an image is one) and images of each class, `[C]`.
    sums
        Of each class's vectors, `[C, E]`.
    scatter
        Of all vectors around their class means, `[E, E]`.
    energy
        The sum of all vectors' squares.
    """

    counts: Tensor
    images: Tensor
    sums: Tensor
    scatter: Tensor
    energy: float

    @classmethod
    def of(cls, values: Tensor, labels: Tensor, classes: int) -> Self:
        """Take them of vectors `[N, V, E]` of images of some labels `[N]`."""
        width = values.shape[2]
        nothing = torch.zeros(classes, dtype=torch.int64)
        empty = cls(
            nothing, nothing, torch.zeros(classes, width).double(), torch.zeros(width, width).double(), 0.0
        )
        return empty.with_images(values, labels)

    @property
    def means(self) -> Tensor:
        """Of each class's vectors, `[C, E]`; 0 for a class without any."""
        return self.sums / self.counts.clamp(min=1)[:, None]

    @property
    def trace(self) -> float:
        """Of the scatter; 0 where all there is is rounding."""
        found = float(self.scatter.trace())
        return found if found > NOTHING * self.energy else 0.0

    def with_images(self, values: Tensor, labels: Tensor) -> Self:
        """Add images `[N, V, E]`: a change of rank `N V` at most."""
        return self._changed(values, labels, 1)

    def without_images(self, values: Tensor, labels: Tensor) -> Self:
        """Leave out images that are among them: a change of rank `N V` at most."""
        return self._changed(values, labels, -1)

    def change(self, values: Tensor, labels: Tensor, sign: int) -> Tensor:
        """Give rows D `[r, E]`: the scatter becomes `scatter + sign D^T D` when images enter (1) or leave
        (-1)."""
        x, marks = flat(values, labels)
        counts, sums = _totals(x, marks, len(self.counts))
        means = sums / counts.clamp(min=1)[:, None]
        spread = (x - means[marks])[counts[marks] > 1]
        old, size = self.counts.double(), counts.double()
        new = old + sign * size
        moved = (counts > 0) & (old > 0) & (new > 0)
        step = (size * old / new.clamp(min=1)).sqrt()[:, None] * (means - self.means)
        return torch.cat([spread, step[moved]])

    def _changed(self, values: Tensor, labels: Tensor, sign: int) -> Self:
        x, marks = flat(values, labels)
        counts, sums = _totals(x, marks, len(self.counts))
        rows = self.change(values, labels, sign)
        return replace(
            self,
            counts=self.counts + sign * counts,
            images=self.images + sign * torch.bincount(labels, minlength=len(counts)),
            sums=self.sums + sign * sums,
            scatter=self.scatter + sign * (rows.T @ rows),
            energy=self.energy + sign * float(x.square().sum()),
        )


def flat(values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Give every view as a row `[N V, E]`, in float64, and its label."""
    return values.flatten(0, 1).double(), labels.repeat_interleave(values.shape[1])


def _totals(x: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Count and add the vectors of each class."""
    sums = torch.zeros(classes, x.shape[1], dtype=x.dtype).index_add_(0, labels, x)
    return torch.bincount(labels, minlength=classes), sums


def discriminants(moments: Moments, solved: Tensor, prior: float = 0.0) -> tuple[Tensor, Tensor]:
    """Give weight `[C, E]` and bias `[C]` of `x P mu_c - mu_c P mu_c / 2 + prior log (share_c C)`,
    from `P mu [C, E]`.

    A class without images takes the mean of the others': it is neither favoured nor held back.
    """
    present = moments.images > 0
    bias = -(solved * moments.means).sum(1) / 2
    if prior:
        relative = moments.images.double() * int(present.sum()) / max(int(moments.images.sum()), 1)
        bias = bias + prior * torch.where(present, relative, 1.0).log()
    if bool(present.any()) and not bool(present.all()):
        solved = torch.where(present[:, None], solved, solved[present].mean(0))
        bias = torch.where(present, bias, bias[present].mean())
    return solved, bias


def left_out(
    values: Tensor, labels: Tensor, queries: Tensor, classes: int, folds: Tensor, rule: Rule
) -> Tensor:
    """Give each image's discriminants by a fit on the images of all other folds, exactly.

    Parameters
    ----------
    values, labels
        Vectors `[N, V, E]` and labels `[N]` of the support set.
    queries
        What each image is as a test image, `[N, E]`.
    classes
        C.
    folds
        The fold of each image, `[N]`; those of fold -1 are in every fit.
    rule
        The shrinkage, by the moments that are left.

    Returns
    -------
    Tensor
        `[N, C]`, float64; NaN for images of fold -1.
    """
    moments, queries = Moments.of(values, labels, classes), queries.double()
    spectrum, vectors = torch.linalg.eigh(moments.scatter)
    found = torch.full((len(labels), classes), torch.nan, dtype=torch.float64)
    for fold in folds[folds >= 0].unique().tolist():
        rows = folds == fold
        changed = moments.change(values[rows], labels[rows], -1)
        rest = moments.without_images(values[rows], labels[rows])
        factor, ridge, prior = rule(rest)
        if len(changed) > len(spectrum):  # as few rows that have the same products
            changed = torch.linalg.qr(changed, mode="r").R
        gone, diagonal = changed @ vectors, spectrum.clamp(min=0) + ridge
        scaled = gone / diagonal
        core = torch.eye(len(gone), dtype=gone.dtype) - scaled @ gone.T
        solved = rest.means @ vectors / diagonal
        solved = factor * (solved + (solved @ gone.T) @ torch.linalg.solve(core, scaled))
        weight, bias = discriminants(rest, solved @ vectors.T, prior)
        found[rows] = queries[rows] @ weight.T + bias
    return found

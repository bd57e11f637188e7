"""Ridge regression with images left out: `k(x) (K + lam W^-1)^-1 R` for all `lam` from one
eigendecomposition.

R `[n, C]` are the targets, W the diagonal of the weights `[n]`, and n counts vectors: the views of an image
are rows of their own, of one fold. With `G = (K + lam W^-1)^-1` and `c = G R`, the answers for the rows b of
a fold by a fit on all others are `R_b - (G_bb)^-1 c_b`: an identity, not an approximation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class KernelSystem:
    """`K + lam W^-1` in the eigenbasis of `W^1/2 K W^1/2`: every `lam` costs products only.

    Attributes
    ----------
    values, vectors
        Of `W^1/2 K W^1/2`: `[n]`, and `[n, n]` in columns.
    roots
        `W^1/2`, `[n]`.
    """

    values: Tensor
    vectors: Tensor
    roots: Tensor

    @classmethod
    def of(cls, kernel: Tensor, weights: Tensor | None = None) -> Self:
        """Decompose a kernel matrix `[n, n]`; images weigh alike, or by `weights [n]`."""
        roots = kernel.new_ones(len(kernel)) if weights is None else weights.to(kernel).sqrt()
        values, vectors = torch.linalg.eigh(roots[:, None] * kernel * roots)
        return cls(values.clamp(min=0), vectors, roots)

    def coefficients(self, targets: Tensor, lam: float) -> Tensor:
        """`(K + lam W^-1)^-1 R`, `[n, C]`."""
        rotated = self.vectors.T @ (self.roots[:, None] * targets)
        return self.roots[:, None] * (self.vectors @ (rotated / (self.values + lam)[:, None]))

    def left_out(self, targets: Tensor, folds: Tensor, lams: Sequence[float]) -> Iterator[Tensor]:
        """Give, for each `lam`, the answers `[n, C]` for each row by a fit on the rows of all other folds.

        `folds [n]` are numbers; rows of fold -1 are in every fit, and NaN here. Weights stay as they are.
        """
        for lam in lams:
            coefficients, found = self.coefficients(targets, lam), torch.full_like(targets, torch.nan)
            for rows in rows_of(folds):
                basis = self.roots[rows, None] * self.vectors[rows]
                block = (basis / (self.values + lam)) @ basis.T
                found[rows] = targets[rows] - torch.linalg.solve(block, coefficients[rows])
            yield found


@dataclass(frozen=True)
class LinearSystem:
    """The same for a linear kernel, `K = X X^T`, in memory of `E^2` for each fold, however many rows there
    are.

    Attributes
    ----------
    x
        `[n, E]`.
    weights
        `[n]`.
    """

    x: Tensor
    weights: Tensor

    @cached_property
    def gram(self) -> Tensor:
        """`X^T W X`, `[E, E]`."""
        return self.x.T @ (self.weights[:, None] * self.x)

    def primal(self, targets: Tensor, lam: float) -> Tensor:
        """`(X^T W X + lam I)^-1 X^T W R`, `[E, C]`: what the coefficients make of X."""
        ridge = self.gram + lam * torch.eye(len(self.gram), dtype=self.x.dtype)
        return torch.linalg.solve(ridge, self.x.T @ (self.weights[:, None] * targets))

    def coefficients(self, targets: Tensor, lam: float) -> Tensor:
        """`(K + lam W^-1)^-1 R`, `[n, C]`, for `lam > 0`."""
        return self.weights[:, None] * (targets - self.x @ self.primal(targets, lam)) / lam

    def left_out(self, targets: Tensor, folds: Tensor, lams: Sequence[float]) -> Iterator[Tensor]:
        """See `KernelSystem.left_out`. Each fold is decomposed once, or, for one `lam`, solved."""
        whole, parts = self.x.T @ (self.weights[:, None] * targets), []
        alone = lams[0] * torch.eye(len(self.gram), dtype=self.x.dtype) if len(lams) == 1 else None
        for rows in rows_of(folds):
            weighted = self.weights[rows, None] * self.x[rows]
            gram, rest = self.gram - self.x[rows].T @ weighted, whole - weighted.T @ targets[rows]
            if alone is not None:
                factor = torch.linalg.cholesky(gram + alone)
                parts.append((rows, self.x[rows], torch.ones(1), torch.cholesky_solve(rest, factor)))
                continue
            values, vectors = torch.linalg.eigh(gram)
            parts.append((rows, self.x[rows] @ vectors, values.clamp(min=0)[:, None], vectors.T @ rest))
        for lam in lams:
            found = torch.full_like(targets, torch.nan)
            for rows, x, values, rest in parts:
                found[rows] = x @ (rest if alone is not None else rest / (values + lam))
            yield found


def solve(kernel: Tensor, weights: Tensor, targets: Tensor, lam: float) -> Tensor:
    """`(K + lam W^-1)^-1 R`, `[n, C]`, for one `lam > 0`: a ninth of the work of a `KernelSystem`. Overwrites
    K."""
    kernel.diagonal().add_(lam / weights)
    factor = torch.linalg.cholesky(kernel, out=kernel)
    return torch.cholesky_solve(targets, factor)


def rows_of(folds: Tensor) -> list[Tensor]:
    """Give the rows of each fold from 0 on, for the folds of rows `[n]`."""
    return [(folds == fold).nonzero()[:, 0] for fold in folds[folds >= 0].unique().tolist()]


def inverse_without(inverse: Tensor, rows: Tensor) -> Tensor:
    """Give `(K + lam I)^-1` without some rows, from the inverse with them `[n, n]`, by the Schur complement.

    `O(n^2)` for each row that leaves, in place of `O(n^3)`.
    """
    stay = torch.ones(len(inverse), dtype=torch.bool).index_fill(0, rows, False)
    across = inverse[stay][:, rows]
    return inverse[stay][:, stay] - across @ torch.linalg.solve(inverse[rows][:, rows], across.T)


def inverse_with(inverse: Tensor, across: Tensor, corner: Tensor) -> Tensor:
    """Give `(K + lam I)^-1` with m more rows, from the inverse without them `[n, n]`: the bordered inverse.

    Parameters
    ----------
    inverse
        `[n, n]`.
    across
        The kernel between old and new rows, `[n, m]`.
    corner
        The kernel among new rows, with `lam` on its diagonal: `[m, m]`.
    """
    reach = inverse @ across
    schur = torch.linalg.inv(corner - across.T @ reach)
    side = -reach @ schur
    return torch.cat([torch.cat([inverse - side @ reach.T, side], 1), torch.cat([side.T, schur], 1)])

"""The regression behind a kernel ridge: residuals of zero-shot on the support set, solved and left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from handful.errors import ParameterError
from handful.left_out.ridge import KernelSystem, LinearSystem, solve
from handful.methods.features.kernel_ridge.head import RidgeHead, kernel

MOST_ROWS, MOST_SEARCHED = 16_384, 2_048
"""Vectors whose kernel matrix is solved (2 GiB), and those whose matrix is decomposed for every beta (a
minute)."""


@dataclass(frozen=True)
class Settings:
    """The numbers of a kernel ridge; `beta` 0 is the linear kernel."""

    beta: float
    lam: float
    rho: float


@dataclass(frozen=True)
class Regression:
    """The residuals of zero-shot on a support set, `R = Y - F0`.

    Attributes
    ----------
    class_weights
        T `[C, E]`.
    keys
        Unit vectors `[N, V, E]`; every view is a row of the system.
    labels
        `[N]`.
    scale
        s.
    weights
        What each image weighs, `[N]`; None for alike.
    plain
        Whether logits are `F0` and not `s F0`.
    """

    class_weights: Tensor
    keys: Tensor
    labels: Tensor
    scale: float
    weights: Tensor | None
    plain: bool

    @cached_property
    def rows(self) -> Tensor:
        """X `[N V, E]`, float64."""
        return self.keys.flatten(0, 1).double()

    def of_views(self, values: Tensor) -> Tensor:
        """Repeat what images have, `[N]`, for every view."""
        return values.repeat_interleave(self.keys.shape[1])

    @cached_property
    def residuals(self) -> Tensor:
        """`Y - X T^T`, `[N V, C]`."""
        targets = F.one_hot(self.of_views(self.labels), len(self.class_weights)).double()
        return targets - self.rows @ self.class_weights.double().T

    @cached_property
    def row_weights(self) -> Tensor:
        """The weight of every view, `[N V]`."""
        weights = torch.ones(len(self.labels)) if self.weights is None else self.weights
        return self.of_views(weights.double())

    def system(self, beta: float) -> KernelSystem | LinearSystem:
        """Prepare the system for every `lam`."""
        if beta == 0:
            return LinearSystem(self.rows, self.row_weights)
        return KernelSystem.of(kernel(self.rows, self.rows, beta), self.row_weights)

    def head(self, found: Settings) -> RidgeHead:
        """Solve the system.

        Raises
        ------
        ParameterError
            It is too large.
        """
        x, gain = self.rows, found.rho * (1.0 if self.plain else self.scale)
        if found.beta == 0:
            solved = LinearSystem(x, self.row_weights).primal(self.residuals, found.lam)
            own = self.of_views(self.labels)
            shares = (
                self.row_weights * (self.residuals - x @ solved).gather(1, own[:, None])[:, 0] / found.lam
            )
            parts = {"weight": gain * solved.T, "shares": gain * shares.view(self.keys.shape[:2])}
        else:
            if len(x) > MOST_ROWS:
                raise ParameterError(
                    f"kernel='rbf' solves a system of one row for each vector, got {len(x):,}, expected at "
                    f"most {MOST_ROWS:,}. Take kernel='linear', whose memory doesn't grow, or fewer images."
                )
            coefficients = solve(kernel(x, x, found.beta), self.row_weights, self.residuals, found.lam)
            parts = {"coefficients": gain * coefficients.view(*self.keys.shape[:2], len(self.class_weights))}
        parts = {name: part.float().contiguous() for name, part in parts.items()}
        return RidgeHead(
            self.class_weights, self.keys, self.labels, parts, self.scale, found.beta, self.plain
        )

    def added(
        self, features: Tensor, betas: Sequence[float], lams: Sequence[float]
    ) -> Iterator[tuple[Settings, Tensor]]:
        """Give what each rho of 1 adds to cosines of raw features `[N, E]`, for every beta and lam: `[N,
        C]`."""
        x = F.normalize(features, dim=-1).double()
        for beta in betas:
            system = self.system(beta)
            for lam in lams:
                if isinstance(system, LinearSystem):
                    yield Settings(beta, lam, 1.0), x @ system.primal(self.residuals, lam)
                else:
                    near = kernel(x, self.rows, beta)
                    yield Settings(beta, lam, 1.0), near @ system.coefficients(self.residuals, lam)

    def left_out(
        self, folds: Tensor, betas: Sequence[float], lams: Sequence[float]
    ) -> Iterator[tuple[Settings, Tensor]]:
        """Give the same for the support images, each by a fit without its fold; of views the mean, `[N,
        C]`."""
        residuals, of_rows = self.residuals, self.of_views(folds)
        for beta in betas:
            system = self.system(beta)
            for lam, answers in zip(lams, system.left_out(residuals, of_rows, lams), strict=True):
                yield Settings(beta, lam, 1.0), answers.view(*self.keys.shape[:2], -1).mean(1)

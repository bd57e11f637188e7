"""The directions that features have at all."""

from __future__ import annotations

import torch
from torch import Tensor

from handful.errors import TrainingError

RANK = 1e-10
"""Share of the largest eigenvalue below which no image has anything along a direction."""


def principal(x: Tensor) -> Tensor:
    """Give the principal directions of features `[N, E]`, not centred: R orthonormal columns, `[E, R]`.

    What is learned linearly from x, with a penalty on its norm, has nothing outside of them.

    Raises
    ------
    TrainingError
        Features are NaN or infinite.
    """
    rows = x.double()
    if not torch.isfinite(rows).all():
        raise TrainingError("Got features that are NaN or infinite, expected numbers: check the features.")
    small = len(x) < x.shape[1]
    values, vectors = torch.linalg.eigh(rows @ rows.T if small else rows.T @ rows)
    kept = values > RANK * values[-1]
    found = rows.T @ vectors[:, kept] / values[kept].sqrt() if small else vectors[:, kept]
    return found.to(x.dtype)

"""Choosing the numbers of a kernel ridge: rho exactly, for every beta and lam of a grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from handful.balance import whole_weights
from handful.methods.features.kernel_ridge.regression import Regression, Settings
from handful.search import best_blend, best_ratio
from handful.selection import Validation, shot_folds

BETAS, LAMS, MOST = (1.0, 3.0), (0.03, 0.1, 0.3, 1.0, 3.0), 3.0
"""Where a search looks, and its largest rho."""
Grid = tuple[tuple[float, float, int], tuple[float, float, int]]
"""First, last and number of the betas, and of the lams."""
RANGES: dict[str, Grid] = {
    "wide": ((0.5, 3.0, 20), (0.001, 1.0, 10)), "imagenet": ((1.5, 3.0, 10), (0.05, 0.25, 10)),
    "caltech101": ((0.5, 3.0, 20), (0.001, 1.0, 10)), "fgvc": ((0.5, 3.0, 20), (0.001, 1.0, 10)),
    "dtd": ((0.1, 10.0, 20), (0.001, 10.0, 100)), "oxford_flowers": ((0.1, 10.0, 20), (0.001, 10.0, 100)),
    "eurosat": ((0.5, 3.0, 20), (0.001, 1.0, 100)),
}  # fmt: skip
"""Where the published code searches, end points included: tuned for each data set by the authors."""


def grid(ranges: str) -> tuple[Sequence[float], Sequence[float]]:
    """Give the betas and lams of a published search."""
    (low, high, count), (least, most, steps) = RANGES[ranges]
    return torch.linspace(low, high, count).tolist(), torch.linspace(least, most, steps).tolist()


def search(
    problem: Regression, seen: Validation | None, betas: Sequence[float], lams: Sequence[float], balance: bool
) -> tuple[Settings, Tensor]:
    """Choose the numbers on images that were seen, or, for None, leaving out shots of the support set.

    Returns
    -------
    settings, merits
        The first best settings, and how good each beta and lam is, `[betas, lams]`: accuracy on images that
        were seen, else the negative cross-entropy.
    """
    text = problem.class_weights.double().T
    if seen is None:
        folds = shot_folds(problem.labels)
        held = folds >= 0
        labels, weights = problem.labels[held], whole_weights(problem.labels, balance)[held]
        x, every = problem.keys.double().mean(1)[held], problem.left_out(folds, betas, lams)
    else:
        held = torch.ones_like(seen.labels, dtype=torch.bool)
        labels, weights = seen.labels, seen.weights
        x, every = F.normalize(seen.features, dim=-1).double(), problem.added(seen.features, betas, lams)
    base, found, merits = x @ text, [], []
    for settings, added in every:
        rho, merit = _best(problem.plain, seen is None, settings.lam, base, added[held], labels, weights)
        found.append(replace(settings, rho=rho))
        merits.append(merit)
    return found[merits.index(max(merits))], torch.tensor(merits, dtype=torch.float64).view(
        len(betas), len(lams)
    )


def _best(
    plain: bool, inside: bool, lam: float, base: Tensor, added: Tensor, labels: Tensor, weights: Tensor
) -> tuple[float, float]:
    """Give the best rho for what a rho of 1 adds, or, `plain`, lam; and how good it is."""
    if not plain:
        rho, merit = best_blend(base, added, labels, weights) if inside else (0.0, 0.0)
        return (min(rho, MOST), -merit) if inside else best_ratio(base, added, labels, 0.0, MOST, weights)
    logits = base + lam * added
    if inside:
        return lam, -best_blend(logits, torch.zeros_like(logits), labels, weights)[1]
    return lam, int(weights[logits.argmax(1) == labels].sum()) / int(weights.sum())

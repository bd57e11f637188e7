"""The regularised linear adapter of image features, at its minimum (ProLIP's sibling, Fahes et al. 2024)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from handful.convex.basis import principal
from handful.convex.descent import minimize

ROWS = 2048
"""Images whose logits are looked at together, so that they stay in the processor's cache."""
TINY = 1e-30
"""Least curvature."""


def adapt(
    x: Tensor,
    labels: Tensor,
    text: Tensor,
    scale: float,
    strength: float,
    weights: Tensor | None = None,
    *,
    steps: int = 40,
    tolerance: float = 1e-3,
    start: Tensor | None = None,
) -> Tensor:
    """Find the matrix M `[E, E]` that moves images to where their classes are, at a minimum of

        mean_i weight_i cross_entropy(scale norm(x_i + x_i M) T^T, y_i) + strength (scale / 100)^2 |M|^2

    with the sum of squares. Not convex because of the norm, so it is the minimum that L-BFGS finds from 0. It
    works in the principal directions of x and in those in which the classes bend the loss.

    Parameters
    ----------
    x, labels
        Unit features `[N, E]`, and rows of `text` `[N]`.
    text
        Class weights T `[C, E]`.
    scale
        The inverse temperature.
    strength
        Of the penalty, at CLIP's scale of 100.
    weights
        Of the images, `[N]`, of mean 1; None for alike.
    steps
        Evaluations at most.
    tolerance
        Of the gradient, see `minimize`.
    start
        A matrix `[E, E]` to start from, which has nothing outside of the directions of x; None for 0.
    """
    moved, _ = adapted(
        x, labels, text, scale, strength, weights, steps=steps, tolerance=tolerance, start=start
    )
    return moved


def adapted(
    x: Tensor, labels: Tensor, text: Tensor, scale: float, strength: float, weights: Tensor | None = None,
    *, steps: int, tolerance: float, start: Tensor | None = None, features: Tensor | None = None,
) -> tuple[Tensor, list[float]]:  # fmt: skip
    """Give M as `adapt`, and the loss at every evaluation.

    With `features` `[N, E]` what is moved is these, by `x M`, x of another width H: M is `[H, E]`.
    """
    features = x if features is None else features
    basis = principal(x)
    images, pull = x @ basis, strength * (scale / 100) ** 2  # [N, R]
    share = torch.full_like(x[:, 0], 1 / len(x)) if weights is None else weights.to(x.dtype) / len(x)
    chances = (scale * F.normalize(features, dim=-1) @ text.T).softmax(1)
    mean = chances @ text
    bend = (text * (share @ chances)[:, None]).T @ text - (mean * share[:, None]).T @ mean
    bends, turn = torch.linalg.eigh(bend.double())
    turn, bends = turn.to(x.dtype), bends.clamp(min=0).to(x.dtype)
    turned, names = features @ turn, text @ turn  # [N, E], [C, E]
    near = share / features.square().sum(1).clamp(min=1e-12)
    rough = scale**2 * torch.outer(near @ images.square(), bends) + 2 * pull + TINY
    rough = (rough * rough.max()).sqrt()

    def evaluate(moved: Tensor) -> tuple[Tensor, Tensor]:
        loss, gradient = pull * moved.square().sum(), 2 * pull * moved
        for rows in torch.arange(len(x)).split(ROWS):
            part, truth, weight = images[rows[0] : rows[-1] + 1], labels[rows], share[rows]
            there = turned[rows[0] : rows[-1] + 1] + part @ moved
            length = there.norm(dim=1, keepdim=True).clamp(min=1e-12)
            unit = there / length
            logs = (scale * unit @ names.T).log_softmax(1)
            loss = loss - (weight * logs.gather(1, truth[:, None])[:, 0]).sum()
            wrong = logs.exp_()
            wrong[torch.arange(len(rows)), truth] -= 1
            back = (scale * weight[:, None] / length) * (wrong @ names)
            gradient.addmm_(part.T, back - unit * (unit * back).sum(1, keepdim=True))
        return loss, gradient

    begin = x.new_zeros(basis.shape[1], text.shape[1]) if start is None else basis.T @ start @ turn
    moved, losses = minimize(evaluate, begin, rough, steps, tolerance, start is not None)
    return basis @ moved @ turn.T, losses

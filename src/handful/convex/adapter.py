"""The regularised linear adapter of image features, at its minimum (ProLIP's sibling, Fahes et al. 2024)."""

from __future__ import annotations

import torch
from torch import Tensor

from handful.convex.basis import principal
from handful.convex.descent import minimize
from handful.convex.softmax import ROWS, TINY, cross_entropy, shares


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

    with the sum of squares, where M moves within the span of the differences between names (`span_of`).
    Not convex because of the norm, so it is the minimum that L-BFGS finds from 0. It works in the principal
    directions of x and in those in which the classes bend the loss.

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
        x, labels, text, scale, strength, weights, steps=steps, tolerance=tolerance, start=start,
        span=span_of(text),
    )  # fmt: skip
    return moved


def span_of(text: Tensor) -> Tensor:
    """Give orthonormal directions `[E, R]` of the differences between class weights `[C, E]`.

    An image that moves along any other changes its length alone. On CLIP's features it is .3 to 1.3 points
    better to leave these out, and with fewer classes than E far cheaper.
    """
    return principal(text - text.mean(0)) if len(text) > 1 else text.new_zeros(text.shape[1], 0)


def adapted(
    x: Tensor, labels: Tensor, text: Tensor, scale: float, strength: float, weights: Tensor | None = None,
    *, steps: int, tolerance: float, start: Tensor | None = None, features: Tensor | None = None,
    span: Tensor | None = None,
) -> tuple[Tensor, list[float]]:  # fmt: skip
    """Give M as `adapt`, and the loss at every evaluation.

    With `features` `[N, E]` what is moved is these, by `x M`, x of another width H: M is `[H, E]`. It moves
    them within the directions `span` `[E, R]`; None for all.
    """
    features = x if features is None else features
    span = torch.eye(text.shape[1]) if span is None else span
    basis = principal(x)
    images, pull = x @ basis, strength * (scale / 100) ** 2  # [N, P]
    share = shares(x, weights)
    told = features @ text.T  # [N, C]
    square = features.square().sum(1, keepdim=True).clamp(min=1e-24)
    chances = (scale * told * square.rsqrt()).softmax(1)
    inside = text @ span
    mean = chances @ inside
    bend = (inside * (share @ chances)[:, None]).T @ inside - (mean * share[:, None]).T @ mean
    bends, turn = torch.linalg.eigh(bend.double())
    span, bends = span @ turn.to(x.dtype), bends.clamp(min=0).to(x.dtype)
    turned, names = features @ span, text @ span  # [N, R], [C, R]
    rough = scale**2 * torch.outer((share / square[:, 0]) @ images.square(), bends) + 2 * pull + TINY
    rough = (rough * rough.max()).sqrt() if rough.numel() else rough

    def evaluate(moved: Tensor) -> tuple[Tensor, Tensor]:
        loss, gradient = pull * moved.square().sum(), 2 * pull * moved
        for first in range(0, len(x), ROWS):
            rows = slice(first, first + ROWS)
            part, truth, weight, own = images[rows], labels[rows], share[rows], turned[rows]
            step = part @ moved  # [N, R]
            squared = square[rows] + ((2 * own + step) * step).sum(1, keepdim=True)
            length = squared.clamp(min=1e-24).sqrt()
            logits = (told[rows] + step @ names.T).mul_(scale / length)
            part_loss, wrong = cross_entropy(logits, truth, weight)
            loss = loss + part_loss
            along = (wrong * logits).sum(1, keepdim=True) / squared.clamp(min=1e-24)
            back = (scale / length) * (wrong @ names) - along * (own + step)
            gradient.addmm_(part.T, weight[:, None] * back)
        return loss, gradient

    begin = x.new_zeros(basis.shape[1], span.shape[1]) if start is None else basis.T @ start @ span
    moved, losses = minimize(evaluate, begin, rough, steps, tolerance, start is not None)
    return basis @ moved @ span.T, losses

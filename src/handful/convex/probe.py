"""The linear probe that stays near given class weights, at its minimum."""

from __future__ import annotations

import torch
from torch import Tensor

from handful.balance import effective_number
from handful.convex.basis import principal
from handful.convex.descent import minimize
from handful.convex.softmax import ROWS, TINY, cross_entropy, shares

TOLERANCE = 1e-3
"""Share of the gradient that is left, by its length in units of the curvature: the loss is then within about
its square of the lowest, relative to what there was to gain."""


def probe(
    x: Tensor,
    labels: Tensor,
    text: Tensor,
    scale: float,
    anchors: Tensor,
    weights: Tensor | None = None,
    *,
    most: int = 300,
    tolerance: float = TOLERANCE,
    start: Tensor | None = None,
) -> tuple[Tensor, list[float]]:
    """Find the class weights W `[C, E]` at the minimum of

        mean_i weight_i cross_entropy(scale x_i W^T, y_i) + mean_c anchor_c |w_c - t_c|^2

    which is convex, and strictly where anchors are above 0. By L-BFGS in the principal directions of x, from
    the curvature at the start.

    Parameters
    ----------
    x, labels
        Unit features `[N, E]`, and rows of `text` `[N]`.
    text
        Class weights to stay near, `[C, E]`.
    scale
        The inverse temperature.
    anchors
        Strength of the penalty of each class, `[C]`.
    weights
        Of the images, `[N]`, of mean 1; None for alike.
    most
        Evaluations at most.
    tolerance
        Of the gradient, see `minimize`.
    start
        Class weights to start from, `[C, E]`; None for `text`.

    Returns
    -------
    class_weights, losses
        W, rows of any length, and the loss at every evaluation.
    """
    basis = principal(x)
    rotated, names = scale * x @ basis, text @ basis  # [N, R], [C, R]
    share = shares(x, weights)
    pull = (anchors / len(text))[:, None]

    def evaluate(moved: Tensor) -> tuple[Tensor, Tensor]:
        loss, gradient = (pull * moved.square()).sum(), 2 * pull * moved
        own = names + moved
        for first in range(0, len(x), ROWS):
            rows = slice(first, first + ROWS)
            part, weight = rotated[rows], share[rows]
            part_loss, wrong = cross_entropy(part @ own.T, labels[rows], weight)
            loss = loss + part_loss
            gradient.addmm_(wrong.mul_(weight[:, None]).T, part)
        return loss, gradient

    def curvature(own: Tensor) -> Tensor:
        """The diagonal of the second derivatives, the mean over classes, `[R]`."""
        found = (2 * pull).mean() + torch.zeros_like(rotated[0])
        for first in range(0, len(x), ROWS):
            rows = slice(first, first + ROWS)
            part = rotated[rows]
            unsure = 1 - (part @ own.T).softmax(1).square().sum(1)
            found += (share[rows] * unsure / len(text)) @ part.square()
        return found

    begin = torch.zeros_like(names) if start is None else (start - text) @ basis
    rough = curvature(names + begin).clamp(min=TINY)
    rough = (rough * rough.max()).sqrt()  # surer images bend less: halfway to alike needs the fewest steps
    moved, losses = minimize(evaluate, begin, rough.expand_as(begin), most, tolerance, start is not None)
    return text + moved @ basis.T, losses


def default_strength(labels: Tensor, scale: float) -> float:
    """Give the strength of the penalty for K images of a class, `75 / K (scale / 100)^2`.

    K is the harmonic mean, which is near the smaller classes. At one image of a class it is as strong as
    CLAP's penalty on raw text features of CLIP, whose norm is 8 to 9; it is weaker where more images say what
    a class is.
    """
    counts = torch.bincount(labels)
    shots = effective_number(counts) / max(int((counts > 0).sum()), 1) if len(labels) else 1.0
    return 75 / shots * (scale / 100) ** 2


def class_confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean zero-shot probability of each class over its own images, `[C]`: CLAP's lambda; 1 without any."""
    classes = logits.shape[1]
    own = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    counts = torch.bincount(labels, minlength=classes)
    sums = own.new_zeros(classes).index_add_(0, labels, own)
    return torch.where(counts > 0, sums / counts.clamp(min=1), 1.0)

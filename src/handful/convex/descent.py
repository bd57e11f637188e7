"""Minimum of a smooth loss of which the curvature is roughly known: L-BFGS with a diagonal to start from."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from handful.errors import TrainingError

Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Gives loss and gradient at a point."""
HISTORY = 20
"""Steps that the second derivatives are learned from."""
TRIALS = 20
"""Of one line search, at most."""
FLAT = 3
"""Steps in a row without a lower loss that end it."""


@torch.no_grad()
def minimize(
    evaluate: Evaluate, start: Tensor, curvature: Tensor, most: int, tolerance: float, warm: bool = False
) -> tuple[Tensor, list[float]]:
    """Find the minimum of a smooth loss by preconditioned L-BFGS (Nocedal & Wright 2006, algorithm 7.4).

    Parameters
    ----------
    evaluate
        Gives the loss, a number, and its gradient, in the shape of `start`.
    start
        Where to start.
    curvature
        Positive, in the shape of `start`: about the diagonal of the second derivatives.
    most
        Evaluations at most.
    tolerance
        It ends when the length of the gradient, `sqrt(sum g^2 / curvature)`, is this share of that at 0, or
        when no lower point is found in the precision of the numbers.
    warm
        Whether `start` is not 0, which costs an evaluation there.

    Returns
    -------
    point, losses
        Where the loss is lowest, and the loss at every evaluation.

    Raises
    ------
    TrainingError
        The loss is NaN or infinite.
    """
    losses: list[float] = []

    def at(point: Tensor) -> tuple[float, Tensor]:
        found, slope = evaluate(point)
        losses.append(float(found))
        if not math.isfinite(losses[-1]):
            raise TrainingError(
                f"The loss became {losses[-1]} at evaluation {len(losses)}: check the features."
            )
        return losses[-1], slope

    point, inverse = start, 1 / curvature
    loss, gradient = at(point)
    first = evaluate(torch.zeros_like(start))[1] if warm else gradient
    enough, flat = tolerance**2 * _dot(first, first * inverse), 0
    pairs: list[tuple[Tensor, Tensor, float]] = []
    while len(losses) < most and flat < FLAT and _dot(gradient, gradient * inverse) > enough:
        direction = -_solve(gradient, pairs, inverse)
        descent = _dot(gradient, direction)
        low, high, step = 0.0, math.inf, 1.0
        best: tuple[float, Tensor, Tensor] | None = None
        for _ in range(TRIALS):
            there = point + step * direction
            now, slope = at(there)
            along = _dot(slope, direction)
            lower = now <= loss + 1e-6 * abs(loss) * (along <= 0.1 * abs(descent))  # float32 sees no less
            if lower and (best is None or now <= best[0]):
                best = (now, there, slope)
            if (lower and abs(along) <= 0.9 * abs(descent)) or len(losses) >= most:
                break
            if along > 0 or not lower:
                high = step
            else:
                low = step
            guess = step * descent / (descent - along) if along > descent else 2 * step  # where it is flat
            inside = math.isfinite(high) and not low + 0.1 * (high - low) < guess < high - 0.1 * (high - low)
            step = (low + high) / 2 if inside else min(guess, 8 * step)
        if best is None or not descent < 0:
            break
        moved, turned = best[1] - point, best[2] - gradient
        if (product := _dot(moved, turned)) > 0:
            pairs = [*pairs[-HISTORY + 1 :], (moved, turned, product)]
        flat = 0 if best[0] < loss else flat + 1
        loss, point, gradient = best
    return point, losses


def _dot(one: Tensor, other: Tensor) -> float:
    return float(torch.dot(one.flatten(), other.flatten()))


def _solve(gradient: Tensor, pairs: list[tuple[Tensor, Tensor, float]], inverse: Tensor) -> Tensor:
    """Apply the inverse of the second derivatives, as far as they are known, to a gradient."""
    rest, shares = gradient.clone(), list[float]()
    for moved, turned, product in reversed(pairs):
        shares.append(_dot(moved, rest) / product)
        rest.add_(turned, alpha=-shares[-1])
    rest = rest * inverse
    if pairs:
        _, turned, product = pairs[-1]
        rest.mul_(product / _dot(turned, turned * inverse))
    for (moved, turned, product), share in zip(pairs, reversed(shares), strict=True):
        rest.add_(moved, alpha=share - _dot(turned, rest) / product)
    return rest

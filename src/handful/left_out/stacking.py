"""Stacking: how much each of some heads should say, found on images that none of them had seen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

STEPS = 50
"""Of Newton's method at most; it takes about five."""
ENOUGH = 1e-5
"""Largest change of a weight, relative to the largest weight, that ends it."""


@dataclass(frozen=True)
class Stack:
    """What stacking found.

    Attributes
    ----------
    weights
        Of the heads, `[H]`, none negative.
    drawn_to
        What they were drawn to: the prior at the temperature that is best for it, `[H]`.
    """

    weights: Tensor
    drawn_to: Tensor


def stack(
    logits: Tensor, labels: Tensor, prior: Tensor, strength: float, weights: Tensor | None = None
) -> Stack:
    """Find the weights w of some heads at which their sum is most likely, drawn to a prior.

    Over `w >= 0`, the one minimum of the convex

        mean_i weight_i cross_entropy(sum_h w_h Z_h(x_i), y_i) + strength sum_h (sd_h (w_h - tau prior_h))^2

    where `sd_h` is the spread of a head's logits, so that a weight counts by what it does, and tau is at
    which the prior alone is most likely. By projected Newton steps (Bertsekas 1982): the unknowns are few.

    Parameters
    ----------
    logits
        Z `[H, N, C]` of images that the heads had not seen.
    labels
        `[N]`.
    prior
        `[H]`, not negative.
    strength
        Of the drawing, more than 0.
    weights
        Of the images, `[N]`, of mean 1; None for alike.
    """
    logits, prior = logits.double(), prior.double()  # where all images are right, it is nearly flat
    share = logits.new_full((len(labels),), 1) if weights is None else weights.double()
    share = share / len(labels)
    centred = logits - logits.mean(2, keepdim=True)
    spread = centred.square().mean((1, 2)).sqrt()
    alone = torch.einsum("h,hnc->nc", prior, centred)
    most = spread[prior > 0].amax().clamp(min=1e-12)
    tau = _newton(
        alone[None], labels, torch.ones_like(prior[:1]), 1e-4 * (prior @ spread / most).square()[None], share
    )
    target = tau * prior
    found = _newton(centred, labels, target, strength * spread.square(), share)
    return Stack(found.float(), target.float())


def _newton(logits: Tensor, labels: Tensor, target: Tensor, pull: Tensor, share: Tensor) -> Tensor:
    """Give `w >= 0` at the minimum of the cross-entropy and `sum pull (w - target)^2`, from the target."""
    own = logits.gather(2, labels[None, :, None].expand(len(logits), -1, 1))[:, :, 0]
    weights = target.clone()

    def value(at: Tensor) -> tuple[Tensor, Tensor]:
        logs = torch.einsum("h,hnc->nc", at, logits).log_softmax(1)
        return logs, pull @ (at - target).square() - share @ logs.gather(1, labels[:, None])[:, 0]

    logs, now = value(weights)
    for _ in range(STEPS):
        chances = logs.exp()
        means = torch.einsum("nc,hnc->hn", chances, logits)
        slope = (means - own) @ share + 2 * pull * (weights - target)
        bend = torch.stack([torch.einsum("nc,hnc,n->h", chances * one, logits, share) for one in logits])
        bend = bend - (means * share) @ means.T + torch.diag(2 * pull)
        free = (weights > 0) | (slope < 0)
        step = torch.zeros_like(weights)
        damping = (
            1e-6 * bend.diagonal().amax().clamp(min=1e-12) * torch.eye(int(free.sum()), dtype=weights.dtype)
        )
        step[free] = torch.linalg.solve(bend[free][:, free] + damping, slope[free])
        for halving in range(20):
            there = (weights - step / 2**halving).clamp(min=0)
            logs, found = value(there)
            if found <= now:
                break
        else:
            break
        change, weights, now = (there - weights).abs().max(), there, found
        if change <= ENOUGH * weights.abs().max():
            break
    return weights

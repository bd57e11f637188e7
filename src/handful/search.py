"""The exact search over a residual ratio, and with it over a second number.

For logits `base + a extra`, the ratios a at which an image is right are an interval, found from the
pairwise logit differences in O(C). Sweeping the interval ends counts, for every a in a range at once,
how many images are right: one sweep in place of a grid of ratios, and no ratio is missed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 256
"""Images whose logits stay in the processor's cache through all betas."""


@dataclass(frozen=True)
class Found:
    """The best numbers of a search, and the accuracy (0 to 1, by the weights) that is reached at them."""

    alpha: float
    beta: float
    accuracy: float


def best_ratio(
    base: Tensor, extra: Tensor, labels: Tensor, low: float, high: float, weights: Tensor | None = None
) -> tuple[float, float]:
    """Find the ratio a in [low, high] at which `base + a * extra` is right most often, exactly.

    Ties keep the first stretch of ratios; the answer is its middle.

    Parameters
    ----------
    base, extra
        Logits `[N, C]`.
    labels
        `[N]`.
    weights
        What a right answer to each image counts, `[N]`, whole numbers; alike by default.

    Returns
    -------
    ratio, accuracy
        The accuracy is between 0 and 1, and reached at that very ratio.
    """
    weights = torch.ones_like(labels) if weights is None else weights
    ratio, _ = sweep(*intervals(gaps(base, labels), extra, labels), low, high, weights)
    right = (base + ratio * extra).argmax(1) == labels
    return ratio, int(weights[right].sum()) / int(weights.sum())


def best_pair(
    base: Tensor,
    extras: Callable[[Tensor, Sequence[float]], Iterator[Tensor]],
    labels: Tensor,
    alphas: tuple[float, float],
    betas: Sequence[float],
    weights: Tensor | None = None,
) -> Found:
    """Find the best alpha in a range, exactly, at each of some betas, for `base + alpha * extra(beta)`.

    Ties keep the smallest beta, then the first stretch of alpha.

    Parameters
    ----------
    base
        Logits `[N, C]`.
    extras
        Gives what alpha multiplies, `[n, C]`, for some rows of images at each of some betas.
    labels
        `[N]`.
    alphas, betas
        The range of alpha, and the betas to look at, ascending.
    weights
        What a right answer to each image counts, `[N]`, whole numbers; alike by default.
    """
    weights = torch.ones_like(labels) if weights is None else weights
    chunks = torch.arange(len(base)).split(ROWS)
    starts, ends = (torch.empty(len(betas), len(base), dtype=torch.float64) for _ in range(2))
    for rows in chunks:
        gap = gaps(base[rows], labels[rows])
        for number, extra in enumerate(extras(rows, betas)):
            starts[number, rows], ends[number, rows] = intervals(gap, extra, labels[rows])
    claims = [
        (*sweep(start, end, *alphas, weights), beta)
        for start, end, beta in zip(starts, ends, betas, strict=True)
    ]
    best, most = Found(claims[0][0], betas[0], -1.0), -1
    for alpha, claimed, beta in sorted(claims, key=lambda claim: -claim[1]):
        if claimed <= most:
            break  # no later claim is better than what was checked
        right = 0
        for rows in chunks:
            (extra,) = extras(rows, [beta])
            right += int(weights[rows][(base[rows] + alpha * extra).argmax(1) == labels[rows]].sum())
        if right > most:
            best, most = Found(alpha, beta, right / max(int(weights.sum()), 1)), right
    return best


STEADY, LEAST = 1e-3, 0.05
"""Of `best_blend`: the weight of the squares, which keeps it finite where all images are right; and the least
u for logits of spread 1, which keeps the ratio finite where `base` says nothing."""


def best_blend(
    base: Tensor, extra: Tensor, labels: Tensor, weights: Tensor | None = None
) -> tuple[float, float]:
    """Find the ratio a >= 0 for which some `u (base + a extra)`, u > 0, has the least cross-entropy.

    That u is free makes it a choice between directions: what `extra` adds isn't held back because it makes
    logits surer than they should be, nor preferred because it mends logits that are too timid. Convex in `u`
    and `u a`, so Newton's steps find it.

    Parameters
    ----------
    base, extra
        Logits `[N, C]`.
    labels
        `[N]`.
    weights
        What each image counts, `[N]`; alike by default.

    Returns
    -------
    ratio, loss
        The loss is the mean cross-entropy at the best u. The ratio is 0 where `extra` is of no use.
    """
    share = torch.ones_like(labels) if weights is None else weights
    share = (share.double() / share.sum())[:, None]
    centred = [logits.double() - logits.double().mean(1, keepdim=True) for logits in (base, extra)]
    spread = [float(part.std().clamp(min=1e-30)) for part in centred]
    parts = [part / size for part, size in zip(centred, spread, strict=True)]  # [N, C] each, of spread 1
    own = [float((share * part.gather(1, labels[:, None])).sum()) for part in parts]

    def look(point: Tensor) -> tuple[float, Tensor]:
        """Give the loss, and the log-probabilities `[N, C]`."""
        blend = float(point[0]) * parts[0] + float(point[1]) * parts[1]
        total = blend.logsumexp(1, keepdim=True)
        loss = float((share * total).sum()) - float(point[0]) * own[0] - float(point[1]) * own[1]
        return loss + STEADY * float(point.square().sum()), blend.sub_(total)

    point, lowest = torch.tensor([1.0, 0.0]).double(), torch.tensor([LEAST, 0.0]).double()
    loss, likely = look(point)
    for _ in range(50):
        likely = likely.exp_()
        pulls = [likely * part for part in parts]
        means = [pull.sum(1, keepdim=True) for pull in pulls]
        gradient = torch.tensor(
            [float((share * mean).sum()) - one for mean, one in zip(means, own, strict=True)]
        )
        gradient = gradient.double() + 2 * STEADY * point
        second = torch.eye(2).double() * 2 * STEADY
        for i, j in ((0, 0), (0, 1), (1, 1)):
            spreads = (pulls[i] * parts[j]).sum(1, keepdim=True) - means[i] * means[j]
            second[i, j] += float((share * spreads).sum())
        second[1, 0] = second[0, 1]
        free = (point > lowest) | (gradient < 0)
        step = torch.zeros(2).double()
        step[free] = torch.linalg.solve(second[free][:, free], gradient[free])
        length, before = 1.0, (loss, point)
        while length > 1e-6:
            point = (before[1] - length * step).clamp(min=lowest)
            loss, likely = look(point)
            if loss <= before[0]:
                break
            length /= 2
        if length <= 1e-6 or float((point - before[1]).abs().max()) < 1e-6:
            break
    ratio = float(point[1]) * spread[0] / (float(point[0]) * spread[1])
    return ratio, loss - STEADY * float(point.square().sum())


def likely_pair(
    base: Tensor,
    extras: Callable[[Tensor, Sequence[float]], Iterator[Tensor]],
    labels: Tensor,
    alphas: Sequence[float],
    betas: Sequence[float],
    weights: Tensor | None = None,
    usual: float = 1.0,
) -> Found:
    """Find the likeliest pair among those that are right about as often as the best, for few images.

    Of few images the one pair that is right most often is found by luck: where nearly all are right at any
    alpha, it may be the largest. So, of all pairs whose accuracy is within half its standard error of the
    best, this is the one of least `sum_i w_i CE_i + log(alpha / usual)^2 / 2`: the log loss, with a standard
    normal prior for the logarithm of alpha around what is usual, which outweighs an image or two.

    Parameters
    ----------
    base, extras, labels, weights
        As for `best_pair`.
    alphas, betas
        What to look at, all of them above 0.
    usual
        The alpha that is taken where the images say nothing.
    """
    weights = torch.ones_like(labels) if weights is None else weights
    right = torch.zeros(len(betas), len(alphas), dtype=torch.float64)
    loss = torch.tensor([math.log(alpha / usual) ** 2 / 2 for alpha in alphas]).double().repeat(len(betas), 1)
    each = weights.double() / weights.double().mean()
    for rows in torch.arange(len(base)).split(ROWS):
        for row, extra in enumerate(extras(rows, betas)):
            for column, alpha in enumerate(alphas):
                logits = base[rows] + alpha * extra
                right[row, column] += each[rows] @ (logits.argmax(1) == labels[rows]).double()
                loss[row, column] += (
                    each[rows] @ F.cross_entropy(logits, labels[rows], reduction="none").double()
                )
    accuracy = right / len(base)
    best = float(accuracy.max())
    enough = accuracy >= best - math.sqrt(max(best * (1 - best), 0) / len(base)) / 2 - 1e-9
    row, column = divmod(int(torch.where(enough, loss, math.inf).argmin()), len(alphas))
    return Found(alphas[column], betas[row], float(accuracy[row, column]))


def gaps(base: Tensor, labels: Tensor) -> Tensor:
    """How far each class is above the true one without the ratio's part, `[N, C]`; itself -inf."""
    own = labels[:, None]
    return (base - base.gather(1, own)).double().scatter_(1, own, -math.inf)


def intervals(gap: Tensor, extra: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Give where each image's interval of right ratios starts and ends, `[N]` each; empty if inf to -inf.

    An image of class y is right where `a (extra_y - extra_c) > base_c - base_y` for every other c.
    """
    slope = (extra.gather(1, labels[:, None]) - extra).double()  # > 0: a larger ratio helps against c
    bound = gap / slope
    starts = torch.where(slope > 0, bound, -math.inf).amax(1)
    ends = torch.where(slope < 0, bound, math.inf).amin(1)
    never = ((slope == 0) & (gap >= 0)).any(1)
    return starts.masked_fill(never, math.inf), ends.masked_fill(never, -math.inf)


def sweep(
    starts: Tensor, ends: Tensor, low: float, high: float, weights: Tensor | None = None
) -> tuple[float, int]:
    """Give the middle of the first stretch of [low, high] that most intervals cover, and how many do.

    With `weights [N]`, whole numbers, those of most weight, and that weight.
    """
    weights = torch.ones(len(starts), dtype=torch.int64) if weights is None else weights
    starts, ends = starts.clamp(min=low), ends.clamp(max=high)
    possible = starts < ends
    begun, started = _running(starts[possible], weights[possible])
    over, ended = _running(ends[possible], weights[possible])
    cuts = torch.cat([starts.new_tensor([low, high]), begun, over]).unique()
    left = cuts[:-1]  # between two neighbouring cuts nothing changes
    started = started[torch.searchsorted(begun, left, right=True)]
    covering = started - ended[torch.searchsorted(over, left, right=True)]
    stretch = int(covering.argmax())
    return float((cuts[stretch] + cuts[stretch + 1]) / 2), int(covering[stretch])


def _running(places: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Sort places `[n]`, and give the weight of the first 0, 1, ... n of them, `[n + 1]`."""
    places, order = places.sort()
    return places, torch.cat([weights.new_zeros(1), weights[order].cumsum(0)])


def by_class(labels: Tensor, classes: int) -> Tensor:
    """Rows of each class, `[C, K]`, filled up with -1."""
    counts = torch.bincount(labels, minlength=classes)
    order = labels.argsort(stable=True)
    place = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]
    index = torch.full((classes, max(int(counts.max()), 1)), -1)
    index[labels[order], place] = order
    return index

"""The exact search over a residual ratio, and with it over the two numbers of a cache.

For logits `base + a extra`, the ratios a at which an image is right are an interval, found from the
pairwise logit differences in O(C). Sweeping the interval ends counts, for every a in a range at once,
how many images are right: one sweep in place of a grid of ratios, and no ratio is missed.

A cache's logits are sums of `exp(-beta (1 - A))`. Betas that are evenly spaced need no exponential
each: the next affinities are the last ones times a constant matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from handful.errors import unexpected

ALPHAS = (0.1, 50.0)
BETAS = tuple(0.5 * number for number in range(1, 41))
"""Where to look for a cache's numbers: as wide as the widest range of the published code."""
PUBLISHED = {
    "imagenet": (7, 3), "caltech101": (12, 5), "dtd": (13, 13), "eurosat": (12, 10), "fgvc": (30, 30),
    "food101": (10, 10), "oxford_flowers": (50, 50), "oxford_pets": (7, 3), "stanford_cars": (20, 10),
    "sun397": (12, 10), "ucf101": (7, 3),
}  # fmt: skip
"""Tip-Adapter's search scales, (beta, alpha): tuned for each data set by its authors (methods.md §5.2)."""
ROWS = 256
"""Images whose affinities stay in the processor's cache through all betas."""
ANCHOR = 16
"""Betas after which affinities are computed anew, before rounding adds up."""


@dataclass(frozen=True)
class Found:
    """The best numbers of a search, and the accuracy (0 to 1) that is reached at them."""

    alpha: float
    beta: float
    accuracy: float


def cache_ranges(name: str) -> tuple[tuple[float, float], tuple[float, ...]]:
    """Give the range of alpha and the betas to look at: `"wide"`, or a data set's as published.

    The published grid has 200 betas and 20 alphas from 0.1 on, and leaves its upper ends out; the
    exact search takes the same betas and every alpha between the first and the last.
    """
    if isinstance(name, str) and name == "wide":
        return ALPHAS, BETAS
    if not isinstance(name, str) or name not in PUBLISHED:
        raise unexpected("ranges", name, f"'wide', or one of {sorted(PUBLISHED)}")
    beta, alpha = PUBLISHED[name]
    return (0.1, 0.1 + 19 * (alpha - 0.1) / 20), tuple(0.1 + i * (beta - 0.1) / 200 for i in range(200))


def best_ratio(base: Tensor, extra: Tensor, labels: Tensor, low: float, high: float) -> tuple[float, float]:
    """Find the ratio a in [low, high] at which `base + a * extra` is right most often, exactly.

    Ties keep the first stretch of ratios; the answer is its middle.

    Parameters
    ----------
    base, extra
        Logits `[N, C]`.
    labels
        `[N]`.

    Returns
    -------
    ratio, accuracy
        The accuracy is between 0 and 1, and reached at that very ratio.
    """
    ratio, _ = sweep(*intervals(gaps(base, labels), extra, labels), low, high)
    return ratio, float(((base + ratio * extra).argmax(1) == labels).double().mean())


def best_cache(
    base: Tensor,
    nearness: Callable[[Tensor], Tensor],
    key_labels: Tensor,
    labels: Tensor,
    alphas: tuple[float, float],
    betas: Sequence[float],
) -> Found:
    """Find the best alpha in a range, exactly, at each of some betas, for `base + alpha * cache(beta)`.

    `cache(beta) = exp(-beta (1 - nearness)) @ one_hot(key_labels)` (Tip-Adapter, equation 5). Ties
    keep the smallest beta, then the first stretch of alpha.

    Parameters
    ----------
    base
        Logits `[N, C]` without the cache.
    nearness
        Gives the cosines `[n, NK]` of some rows of images to all keys; -inf hides a key from an image.
    key_labels, labels
        `[NK]` and `[N]`.
    alphas, betas
        The range of alpha, and the betas to look at, ascending.
    """
    index, chunks = by_class(key_labels, base.shape[1]), torch.arange(len(base)).split(ROWS)
    starts, ends = (torch.empty(len(betas), len(base), dtype=torch.float64) for _ in range(2))
    for rows in chunks:
        gap = gaps(base[rows], labels[rows])
        for number, extra in enumerate(cache_logits(nearness(rows), index, betas)):
            starts[number, rows], ends[number, rows] = intervals(gap, extra, labels[rows])
    claims = [
        (*sweep(start, end, *alphas), beta) for start, end, beta in zip(starts, ends, betas, strict=True)
    ]
    best = Found(claims[0][0], betas[0], -1.0)
    for alpha, claimed, beta in sorted(claims, key=lambda claim: -claim[1]):
        if claimed <= best.accuracy * len(base):
            break  # no later claim is better than what was checked
        right = 0
        for rows in chunks:
            (extra,) = cache_logits(nearness(rows), index, [beta])
            right += int(((base[rows] + alpha * extra).argmax(1) == labels[rows]).sum())
        if right > best.accuracy * len(base):
            best = Found(alpha, beta, right / len(base))
    return best


def best_cache_inside(
    base: Tensor,
    keys: Tensor,
    labels: Tensor,
    groups: Tensor,
    alphas: tuple[float, float] = ALPHAS,
    betas: Sequence[float] = BETAS,
) -> Found:
    """Find a cache's best alpha and beta on the support set that made it, with no other images.

    An image sees no key of its own group: with the number of each image in its class for a group, one
    whole shot of every class is held out at a time.

    Parameters
    ----------
    base
        Logits `[NK, C]` of the support set without the cache.
    keys
        `[NK, E]`, rows of unit norm.
    labels, groups
        `[NK]`.
    alphas, betas
        The range of alpha, and the betas to look at, ascending.
    """

    def nearness(rows: Tensor) -> Tensor:
        return (keys[rows] @ keys.T).masked_fill(groups[rows, None] == groups, -math.inf)

    return best_cache(base, nearness, labels, labels, alphas, betas)


def cache_logits(nearness: Tensor, index: Tensor, betas: Sequence[float]) -> Iterator[Tensor]:
    """Give a cache's logits `[N, C]` for each beta; `index [C, K]` names each class's keys, -1 none."""
    shape = (len(nearness), *index.shape)
    hidden = torch.full((len(nearness), 1), -math.inf)
    away = 1 - torch.cat([nearness, hidden], dim=1)[:, index.flatten()]  # -1 takes the last column
    width, factor, affinity = math.nan, away, away
    for number, beta in enumerate(betas):
        step = beta - betas[number - 1]
        if number % ANCHOR == 0:
            affinity = torch.exp(-beta * away)
        else:
            if not math.isclose(step, width, rel_tol=1e-9):
                width, factor = step, torch.exp(-step * away)
            affinity.mul_(factor)
        yield affinity.view(shape).sum(2)


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


def sweep(starts: Tensor, ends: Tensor, low: float, high: float) -> tuple[float, int]:
    """Give the middle of the first stretch of [low, high] that most intervals cover, and how many do."""
    starts, ends = starts.clamp(min=low), ends.clamp(max=high)
    possible = starts < ends
    starts, ends = starts[possible].sort().values, ends[possible].sort().values
    cuts = torch.cat([starts.new_tensor([low, high]), starts, ends]).unique()
    left = cuts[:-1]  # between two neighbouring cuts nothing changes
    covering = torch.searchsorted(starts, left, right=True) - torch.searchsorted(ends, left, right=True)
    stretch = int(covering.argmax())
    return float((cuts[stretch] + cuts[stretch + 1]) / 2), int(covering[stretch])


def by_class(labels: Tensor, classes: int) -> Tensor:
    """Rows of each class, `[C, K]`, filled up with -1."""
    counts = torch.bincount(labels, minlength=classes)
    order = labels.argsort(stable=True)
    place = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]
    index = torch.full((classes, max(int(counts.max()), 1)), -1)
    index[labels[order], place] = order
    return index

"""A key-value cache of labelled images beside class weights, and the search for its two numbers.

Tip-Adapter's head (Zhang et al. 2022), in the general form that other caches take too: what of a vector is
compared, and what each key counts, may differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handful.balance import class_weighting, is_unequal, whole_weights
from handful.heads import Head, HeadContext, Shapes, check_rows, expect, flag, number, support_shapes
from handful.search import Found, best_pair, by_class, likely_pair
from handful.selection import Validation, folds, shot_numbers

CHUNK = 16_384
"""Keys that a cache looks at together: bounds the memory over a million keys."""
ANCHOR = 16
"""Betas after which a search computes affinities anew, before rounding adds up."""
ALPHAS, BETAS = (0.1, 50.0), tuple(0.5 * step for step in range(1, 41))
"""Where a search looks: as wide as the widest range of the published code."""

FOLDS = 4
"""At most, of a search inside the support set for what is trained: each is another training."""
LIKELY_ALPHAS, LIKELY_BETAS = 25, 13
"""How many alphas, evenly spaced in their logarithm, and at most how many betas a search inside the support
set looks at."""
Extras = Callable[[Tensor, Sequence[float]], Iterator[Tensor]]
"""Gives a cache's logits `[n, C]` for some rows of images at each of some betas."""


def affinity(nearness: Tensor, beta: float) -> Tensor:
    """`exp(-beta (1 - nearness))` for cosines to keys: equation 5."""
    return torch.exp(-beta * (1 - nearness))


@dataclass(frozen=True)
class CacheHead(Head):
    """Class weights plus a key-value cache: `scale x W^T + alpha affinity(x keys^T, beta) values` (eq. 6).

    With `balance`, the values of a class of n keys are `m / n` in place of 1, m the mean number of keys of a
    class: what a class's keys add is their mean times m, however many they are. `strengths [NK]`, where there
    are any, are what each key's value is multiplied by.
    """

    kind: ClassVar[str] = "cache"
    class_weights: Tensor
    keys: Tensor
    labels: Tensor
    scale: float
    alpha: float
    beta: float
    balance: bool = False
    strengths: Tensor | None = None

    @cached_property
    def values(self) -> Tensor | None:
        """What a key of each class counts, `[C]`; None where each counts 1."""
        if not self.balance or not is_unequal(self.labels):
            return None
        return class_weighting(torch.bincount(self.labels, minlength=len(self.class_weights))).float()

    @property
    def width(self) -> int:
        """E."""
        return self.class_weights.shape[1]

    def read(self, x: Tensor) -> Tensor:
        """Map raw features `[N, E]` to logits `[N, C]`."""
        x = F.normalize(x, dim=-1)
        return self.scale * x @ self.class_weights.T + self.alpha * self.cache(x)

    def compared(self, x: Tensor) -> Tensor:
        """Give what of unit vectors `[N, E]` is compared with the keys: all of them."""
        return x

    @property
    def compared_keys(self) -> Tensor:
        """What of the keys is compared with a query, `[NK, E]`."""
        return self.keys

    def cache(self, x: Tensor) -> Tensor:
        """Sum each class's affinities to unit vectors `[N, E]`, a chunk of keys at a time: `[N, C]`."""
        sums, x = x.new_zeros(x.shape[0], len(self.class_weights)), self.compared(x)
        strengths = [None] * len(self.labels) if self.strengths is None else self.strengths.split(CHUNK)
        for keys, labels, own in zip(
            self.compared_keys.split(CHUNK), self.labels.split(CHUNK), strengths, strict=False
        ):
            near = affinity(x @ keys.T, self.beta)
            sums = sums.index_add(1, labels, near if own is None else near * own)
        return sums if self.values is None else sums * self.values

    def evidence(self, x: Tensor) -> Tensor:
        """What each key adds to its class's logit for a feature `[E]`: `[NK]`."""
        nearness = self.compared_keys @ self.compared(F.normalize(x, dim=-1))
        added = self.alpha * affinity(nearness, self.beta)
        added = added if self.strengths is None else added * self.strengths
        return added if self.values is None else added * self.values[self.labels]

    def traceable(self) -> nn.Module:
        """The values are constants, found here: how they are found can't be traced."""
        _ = self.values, self.compared_keys
        return super().traceable()

    def tensors(self) -> dict[str, Tensor]:
        """`class_weights [C, E]`, `keys [NK, E]`, `labels [NK]` (int64), and `strengths [NK]`, if any."""
        own = {} if self.strengths is None else {"strengths": self.strengths}
        return {"class_weights": self.class_weights, "keys": self.keys, "labels": self.labels, **own}

    def settings(self) -> dict[str, Any]:
        """`scale`, `alpha` (residual ratio), `beta` (sharpness), and `balance`, if classes count alike."""
        numbers = {"scale": self.scale, "alpha": self.alpha, "beta": self.beta}
        return {**numbers, "balance": True} if self.balance else numbers

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], settings: dict[str, Any], context: HeadContext) -> Self:
        """Check and build."""
        expect(tensors, cache_shapes(len(context.class_names), tensors))
        return cls(**restored(tensors, settings, context))


def cache_shapes(classes: int, tensors: dict[str, Tensor]) -> Shapes:
    """Shapes of a cache's tensors, with those that these have."""
    return support_shapes(classes) | ({"strengths": ("NK",)} if "strengths" in tensors else {})


def restored(tensors: dict[str, Tensor], settings: dict[str, Any], context: HeadContext) -> dict[str, Any]:
    """Check what a saved cache holds, and give the fields of its head."""
    check_rows(tensors["labels"], len(context.class_names))
    numbers = {name: number(settings, name) for name in ("scale", "alpha", "beta")}
    names = ("class_weights", "keys", "labels", "strengths")
    return {name: tensors.get(name) for name in names} | numbers | {"balance": flag(settings, "balance")}


def cache_logits(
    nearness: Tensor, index: Tensor, betas: Sequence[float], strengths: Tensor | None = None
) -> Iterator[Tensor]:
    """Give a cache's logits `[N, C]` for each of some betas; `index [C, K]` names each class's keys, -1 none.

    Between evenly spaced betas no exponential is needed: the next affinities are the last ones times those
    of the step. `strengths [NK]` multiply the affinities.
    """
    hidden = nearness.new_full((len(nearness), 1), -math.inf)
    near = torch.cat([nearness, hidden], dim=1)[:, index.flatten()]  # -1 takes the last column
    own = None if strengths is None else F.pad(strengths, (0, 1))[index]
    width, factor, now = math.nan, near, near
    for place, beta in enumerate(betas):
        step = beta - betas[place - 1]
        if place % ANCHOR == 0:
            now = affinity(near, beta)
        else:
            if not math.isclose(step, width, rel_tol=1e-9):
                width, factor = step, affinity(near, step)
            now.mul_(factor)
        by_key = now.view(len(near), *index.shape)
        yield (by_key if own is None else by_key * own).sum(2)


def search(
    head: CacheHead, seen: Validation | None, alphas: tuple[float, float], betas: Sequence[float]
) -> Found:
    """Find alpha and beta on images that were seen: those right most often, alpha exactly for each beta.

    For None, on the support set itself, where an image sees no key of its own shot, one whole shot of every
    class being held out at a time: the likeliest of those right about as often as the best, drawn to the
    head's own alpha where that is above 0 (`handful.search.likely_pair`).
    """
    if seen is not None:
        extras = cache_extras(head, F.normalize(seen.features, dim=-1))
        base = head.scale * F.normalize(seen.features, dim=-1) @ head.class_weights.T
        return best_pair(base, extras, seen.labels, alphas, betas, seen.weights)
    shots, left_out = shot_numbers(head.labels), left_out_values(head)
    extras = cache_extras(head, head.keys, shots, left_out)
    base = head.scale * head.keys @ head.class_weights.T
    return likely(base, extras, head, head.labels, alphas, betas)


def search_held_out(
    start: CacheHead,
    refit: Callable[[Tensor], CacheHead],
    alphas: tuple[float, float],
    betas: Sequence[float],
) -> Found:
    """Find alpha and beta of a cache that is trained, on the images that each fold's training did not see.

    `refit` gives the head of a training on some rows of the support set, whose unit vectors are the keys of
    `start`. There are at most `FOLDS`, each of whole shots.
    """
    rows, bases, parts = list[Tensor](), list[Tensor](), list[tuple[int, Extras]]()
    for kept, out in folds(start.labels.numpy(), min(int(start.labels.bincount().max()), FOLDS)):
        head, held_out = refit(torch.from_numpy(kept)), torch.from_numpy(out)
        x = start.keys[held_out]
        rows.append(held_out)
        bases.append(head.scale * x @ head.class_weights.T)
        parts.append((len(out), cache_extras(head, x)))
    return likely(torch.cat(bases), joined(parts), start, start.labels[torch.cat(rows)], alphas, betas)


def likely(
    base: Tensor, extras: Extras, head: CacheHead, labels: Tensor, alphas: tuple[float, float],
    betas: Sequence[float],
) -> Found:  # fmt: skip
    """Find alpha and beta on images of the support set that were held out, drawn to the head's own alpha."""
    low, high = map(math.log10, alphas)
    grid = torch.logspace(low, high, LIKELY_ALPHAS, dtype=torch.float64).tolist()
    some = betas[:: math.ceil(len(betas) / LIKELY_BETAS)]
    weights = whole_weights(labels, head.balance)
    return likely_pair(base, extras, labels, grid, some, weights, min(max(head.alpha, grid[0]), grid[-1]))


def cache_extras(
    head: CacheHead, x: Tensor, shots: Tensor | None = None, values: Tensor | None = None
) -> Extras:
    """Give a function of rows of unit vectors `x [N, E]` and betas: the cache's logits, for a search.

    With `shots [NK]`, the vectors are the keys, and see none of their own shot; `values [shots, C]` are then
    what a key of each class counts.
    """
    index, places, keys = by_class(head.labels, len(head.class_weights)), head.compared(x), head.compared_keys

    def extras(rows: Tensor, betas: Sequence[float]) -> Iterator[Tensor]:
        nearness = places[rows] @ keys.T
        if shots is not None:
            nearness = nearness.masked_fill(shots[rows, None] == shots, -math.inf)
        own = head.values if values is None or shots is None else values[shots[rows]]
        for sums in cache_logits(nearness, index, betas, head.strengths):
            yield sums if own is None else sums * own

    return extras


def joined(parts: Sequence[tuple[int, Extras]]) -> Extras:
    """Give one function for the images of several, one after the other, of numbers of images."""
    starts = list(accumulate([count for count, _ in parts], initial=0))

    def extras(rows: Tensor, betas: Sequence[float]) -> Iterator[Tensor]:
        pieces = []
        for start, (count, own) in zip(starts, parts, strict=False):
            mine = rows[(rows >= start) & (rows < start + count)] - start
            pieces += [own(mine, betas)] if len(mine) else []
        for found in zip(*pieces, strict=True):
            yield torch.cat(found)

    return extras


def left_out_values(head: CacheHead) -> Tensor | None:
    """What a key of each class counts when one shot is held out, `[shots, C]`; None where each counts 1.

    A class that the shot leaves with n - 1 keys weighs as one of n - 1.
    """
    if head.values is None:
        return None
    counts = torch.bincount(head.labels, minlength=len(head.class_weights))
    return class_weighting(counts - (counts > torch.arange(int(counts.max()))[:, None]).long()).float()

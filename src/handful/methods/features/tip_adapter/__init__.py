"""Tip-Adapter: a cache of the support set beside the class weights (Zhang et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handful.backbones import Backbone
from handful.balance import class_weighting, is_unequal, whole_weights
from handful.errors import check_number, unexpected
from handful.estimator import FewShotClassifier, Fitted, Learned, Task, Validation
from handful.heads import LARGEST, Head, HeadContext, check_rows, expect, flag, number, support_shapes
from handful.search import best_pair, by_class
from handful.selection import choose, shot_numbers
from handful.types import Selection, Templates

CHUNK = 16_384
"""Keys that a cache looks at together: bounds the memory over a million keys."""
ANCHOR = 16
"""Betas after which a search computes affinities anew, before rounding adds up."""
ALPHAS, BETAS = (0.1, 50.0), tuple(0.5 * step for step in range(1, 41))
"""Where a search looks: as wide as the widest range of the published code."""
PUBLISHED = {
    "imagenet": (7, 3), "caltech101": (12, 5), "dtd": (13, 13), "eurosat": (12, 10), "fgvc": (30, 30),
    "food101": (10, 10), "oxford_flowers": (50, 50), "oxford_pets": (7, 3), "stanford_cars": (20, 10),
    "sun397": (12, 10), "ucf101": (7, 3),
}  # fmt: skip
"""The published search scales, (beta, alpha): tuned for each data set by the authors."""


def affinity(nearness: Tensor, beta: float) -> Tensor:
    """`exp(-beta (1 - nearness))` for cosines to keys: equation 5."""
    return torch.exp(-beta * (1 - nearness))


@dataclass(frozen=True)
class CacheHead(Head):
    """Class weights plus a key-value cache: `scale x W^T + alpha affinity(x keys^T, beta) values` (eq. 6).

    With `balance`, the values of a class of n keys are `m / n` in place of 1, m the mean number of keys of a
    class: what a class's keys add is their mean times m, however many they are.
    """

    kind: ClassVar[str] = "cache"
    class_weights: Tensor
    keys: Tensor
    labels: Tensor
    scale: float
    alpha: float
    beta: float
    balance: bool = False

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

    def cache(self, x: Tensor) -> Tensor:
        """Sum each class's affinities to unit vectors `[N, E]`, a chunk of keys at a time: `[N, C]`."""
        sums = x.new_zeros(x.shape[0], len(self.class_weights))
        for keys, labels in zip(self.keys.split(CHUNK), self.labels.split(CHUNK), strict=True):
            sums = sums.index_add(1, labels, affinity(x @ keys.T, self.beta))
        return sums if self.values is None else sums * self.values

    def evidence(self, x: Tensor) -> Tensor:
        """What each key adds to its class's logit for a feature `[E]`: `[NK]`."""
        added = self.alpha * affinity(self.keys @ F.normalize(x, dim=-1), self.beta)
        return added if self.values is None else added * self.values[self.labels]

    def traceable(self) -> nn.Module:
        """The values are constants, found here: how they are found can't be traced."""
        _ = self.values
        return super().traceable()

    def tensors(self) -> dict[str, Tensor]:
        """`class_weights [C, E]`, `keys [NK, E]` of unit norm, `labels [NK]` (int64)."""
        return {"class_weights": self.class_weights, "keys": self.keys, "labels": self.labels}

    def settings(self) -> dict[str, Any]:
        """`scale`, `alpha` (residual ratio), `beta` (sharpness), and `balance`, if classes count alike."""
        numbers = {"scale": self.scale, "alpha": self.alpha, "beta": self.beta}
        return {**numbers, "balance": True} if self.balance else numbers

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], settings: dict[str, Any], context: HeadContext) -> Self:
        """Check and build."""
        expect(tensors, support_shapes(len(context.class_names)))
        check_rows(tensors["labels"], len(context.class_names))
        text, keys, labels = (tensors[name] for name in ("class_weights", "keys", "labels"))
        balance = flag(settings, "balance")
        scale, alpha, beta = (number(settings, name) for name in ("scale", "alpha", "beta"))
        return cls(text, keys, labels, scale, alpha, beta, balance)


def cache_logits(nearness: Tensor, index: Tensor, betas: Sequence[float]) -> Iterator[Tensor]:
    """Give a cache's logits `[N, C]` for each of some betas; `index [C, K]` names each class's keys, -1 none.

    Between evenly spaced betas no exponential is needed: the next affinities are the last ones times those
    of the step.
    """
    hidden = nearness.new_full((len(nearness), 1), -math.inf)
    near = torch.cat([nearness, hidden], dim=1)[:, index.flatten()]  # -1 takes the last column
    width, factor, now = math.nan, near, near
    for place, beta in enumerate(betas):
        step = beta - betas[place - 1]
        if place % ANCHOR == 0:
            now = affinity(near, beta)
        else:
            if not math.isclose(step, width, rel_tol=1e-9):
                width, factor = step, affinity(near, step)
            now.mul_(factor)
        yield now.view(len(near), *index.shape).sum(2)


def ranges_of(name: str) -> tuple[tuple[float, float], tuple[float, ...]]:
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


def searched(head: CacheHead, seen: Validation | None, ranges: str) -> CacheHead:
    """Give the head with the alpha and beta that are right most often, alpha exactly for each beta.

    On images that were seen; or, for None, on the support set itself, where an image sees no key of its own
    shot: one whole shot of every class is held out at a time.
    """
    shots, left_out = shot_numbers(head.labels), left_out_values(head) if seen is None else None
    x = head.keys if seen is None else F.normalize(seen.features, dim=-1)
    labels, index = (
        head.labels if seen is None else seen.labels,
        by_class(head.labels, len(head.class_weights)),
    )

    def extras(rows: Tensor, betas: Sequence[float]) -> Iterator[Tensor]:
        nearness = x[rows] @ head.keys.T
        if seen is None:
            nearness = nearness.masked_fill(shots[rows, None] == shots, -math.inf)
        values = head.values if left_out is None else left_out[shots[rows]]
        for sums in cache_logits(nearness, index, betas):
            yield sums if values is None else sums * values

    weights = whole_weights(labels, head.balance) if seen is None else seen.weights
    found = best_pair(head.scale * x @ head.class_weights.T, extras, labels, *ranges_of(ranges), weights)
    return replace(head, alpha=found.alpha, beta=found.beta)


def left_out_values(head: CacheHead) -> Tensor | None:
    """What a key of each class counts when one shot is held out, `[shots, C]`; None where each counts 1.

    A class that the shot leaves with n - 1 keys weighs as one of n - 1.
    """
    if head.values is None:
        return None
    counts = torch.bincount(head.labels, minlength=len(head.class_weights))
    return class_weighting(counts - (counts > torch.arange(int(counts.max()))[:, None]).long()).float()


class TipAdapter(FewShotClassifier):
    """Zero-shot logits plus a training-free cache of the support set.

    `keys = norm(mean over views of f)`, values the one-hot labels, and for a unit query x

        logits = scale x W^T + alpha exp(-beta (1 - x keys^T)) values

    (equations 3 to 6; in the arXiv text of 2021 alpha and beta are swapped).

    Parameters
    ----------
    backbone
        A backbone, or the name of one.
    alpha
        Residual ratio of the cache.
    beta
        Sharpness of the affinities.
    selection
        `"fixed"`: alpha and beta as given. Otherwise they are searched, alpha exactly for each beta:
        `"support"`, inside the support set, one whole shot of every class held out at a time (with
        one shot the fixed values are used); `"val"`, on `fit(..., validation=)`; `"oracle"`, on the
        test set given there, as published for ImageNet.
    ranges
        Where to search: `"wide"`, or the published ranges of a data set (`PUBLISHED`).
    templates
        Of the text classifier.
    views
        Augmented views behind each key; the published recipe takes 10, 0 takes the image itself.
    seed
        Of the views.
    balance
        Whether classes count alike where they have unequal numbers of images: each value of a class of n is
        then `m / n`, m the mean over classes, and a search looks at the mean accuracy over classes.
    class_names
        Names of the classes, for labels that scikit-learn encodes as integers; see `fit`.
    """

    method: ClassVar[str] = "tip-adapter"
    head_type: ClassVar[type[Head]] = CacheHead
    online: ClassVar[bool] = True

    def __init__(
        self,
        backbone: Backbone | str | None = None,
        *,
        alpha: float = 1.17,
        beta: float = 5.5,
        selection: Selection = "fixed",
        ranges: str = "wide",
        templates: Templates = "default",
        views: int | Literal["online"] = 0,
        seed: int = 0,
        balance: bool = True,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.backbone, self.alpha, self.beta = backbone, alpha, beta
        self.selection, self.ranges, self.templates = selection, ranges, templates
        self.views, self.seed, self.balance = views, seed, balance
        self.class_names = class_names

    def cache(self, task: Task) -> CacheHead:
        """Store the support set, with alpha and beta as given."""
        ranges_of(self.ranges)
        alpha, beta = check_number("alpha", self.alpha, 0), check_number("beta", self.beta, 0, above=True)
        if max(alpha, beta) > LARGEST:
            raise unexpected("alpha or beta", max(alpha, beta), f"a number up to {LARGEST:g}")
        keys = task.inputs.directions()
        return CacheHead(task.class_weights, keys, task.labels, task.scale, alpha, beta, self.balances())

    def learn(self, task: Task) -> Learned:
        """Store the support set; choose alpha and beta if asked."""
        head = self.cache(task)
        choice = choose(
            self.selection,
            task,
            lambda: head,
            lambda seen: searched(head, seen, self.ranges),
            "alpha and beta",
        )
        return Learned(choice.value, choice.selection, chosen(choice.value), choice.notes)

    def relearn(self, task: Task, before: Fitted) -> Learned:
        """Search again inside the support set; keep alpha and beta that other images chose."""
        if self.selection in ("fixed", "support"):
            return self.learn(task)
        kept = before.head.settings()
        head = replace(self.cache(task), alpha=kept["alpha"], beta=kept["beta"])
        note = "alpha and beta were chosen before classes or images were changed."
        return Learned(head, before.selection, chosen(head), (note,))


def chosen(head: CacheHead) -> dict[str, Any]:
    """Give the numbers of a cache."""
    return {"alpha": head.alpha, "beta": head.beta}

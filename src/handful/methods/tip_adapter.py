"""Tip-Adapter: a cache of the support set, no training (Zhang et al. 2022, §3.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from handful.backbones import Backbone
from handful.errors import check_number
from handful.estimator import FewShotClassifier, Task
from handful.heads import CacheHead, Head
from handful.selection import best_ratio, check_selection, folds, smallest_class

ALPHA_RANGE = (0.1, 50.0)
BETAS = tuple(float(beta) for beta in np.linspace(0.5, 20, 40))
FOLDS = 4


class TipAdapter(FewShotClassifier):
    """Zero-shot logits plus a training-free cache of the support set.

    `keys = norm(mean over views of f)`, values the one-hot labels, and for a unit query x

        logits = scale x W^T + alpha exp(-beta (1 - x keys^T)) values

    (equations 3 to 6; in the arXiv text of 2021 alpha and beta are swapped, methods.md §5.1).

    Parameters
    ----------
    backbone
        A backbone, or the name of one.
    alpha
        Residual ratio of the cache.
    beta
        Sharpness of the affinities.
    selection
        `"fixed"`: alpha and beta as given. `"support"`: by cross-validation inside the support set,
        whole shots held out, alpha exact for each beta; at one shot the fixed values are used.
    templates
        Of the text classifier.
    views
        Augmented views behind each key; the published recipe takes 10, 0 takes the image itself.
    seed
        Of the views.
    """

    method: ClassVar[str] = "tip-adapter"
    head_type: ClassVar[type[Head]] = CacheHead

    def __init__(
        self,
        backbone: Backbone | str | None = None,
        *,
        alpha: float = 1.17,
        beta: float = 5.5,
        selection: Literal["fixed", "support"] = "fixed",
        templates: str | Sequence[str] = "default",
        views: int = 0,
        seed: int = 0,
    ) -> None:
        self.backbone = backbone
        self.alpha = alpha
        self.beta = beta
        self.selection = selection
        self.templates = templates
        self.views = views
        self.seed = seed

    def fit_head(self, task: Task) -> CacheHead:
        """Store the support set; choose alpha and beta if asked."""
        check_selection(self.selection, ["fixed", "support"])
        alpha, beta = check_number("alpha", self.alpha, 0), check_number("beta", self.beta, 0, above=True)
        keys = task.support.directions()
        head = CacheHead(task.text_weights, keys, task.labels, task.scale, alpha, beta)
        if self.selection == "support":
            shots = smallest_class(task.labels.numpy())
            if shots > 1:
                head = self._search_inside(head, min(shots, FOLDS))
            else:
                self.selection_ = "fixed"
                self.notes_.append("One image of some class: alpha and beta were not searched.")
        self.selected_ = {"alpha": head.alpha, "beta": head.beta}
        return head

    @staticmethod
    def _search_inside(head: CacheHead, count: int) -> CacheHead:
        """Hold out one fold of shots at a time, and search over all held-out images at once."""
        parts = [(torch.from_numpy(a), torch.from_numpy(b)) for a, b in folds(head.labels.numpy(), count)]
        rows = torch.cat([out for _, out in parts])

        def held_out_cache(beta: float) -> Tensor:
            return torch.cat(
                [
                    replace(head, keys=head.keys[fit], labels=head.labels[fit]).cache(head.keys[out], beta)
                    for fit, out in parts
                ]
            )

        base = head.scale * head.keys[rows] @ head.class_weights.T
        return search(head, base, held_out_cache, head.labels[rows])[0]


def search(
    head: CacheHead,
    base: Tensor,
    cache: Callable[[float], Tensor],
    labels: Tensor,
    alphas: tuple[float, float] = ALPHA_RANGE,
    betas: Sequence[float] = BETAS,
) -> tuple[CacheHead, float]:
    """Find the best alpha in a range, exactly, at each of some betas.

    Ties keep the smallest beta, then the smallest stretch of alpha.

    Parameters
    ----------
    head
        The cache.
    base
        Zero-shot logits `[N, C]` of the images to choose by.
    cache
        Gives their cache logits `[N, C]` for a beta.
    labels
        `[N]`.
    alphas, betas
        Where to look.

    Returns
    -------
    head, accuracy
    """
    best, best_accuracy = head, -1.0
    for beta in betas:
        alpha, accuracy = best_ratio(base, cache(beta), labels, *alphas)
        if accuracy > best_accuracy:
            best, best_accuracy = replace(head, alpha=alpha, beta=beta), accuracy
    return best, best_accuracy

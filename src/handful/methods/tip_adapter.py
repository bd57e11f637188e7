"""Tip-Adapter: a cache of the support set, no training (Zhang et al. 2022, §3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from handful.backbones import Backbone
from handful.errors import check_number
from handful.estimator import FewShotClassifier, Task
from handful.heads import CacheHead, Head
from handful.search import best_cache_inside
from handful.selection import check_selection, shot_numbers, smallest_class


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
        one whole shot of every class held out at a time, alpha exact for each beta; at one shot the
        fixed values are used.
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
                base = head.scale * keys @ head.class_weights.T
                found = best_cache_inside(base, keys, task.labels, shot_numbers(task.labels))
                head = replace(head, alpha=found.alpha, beta=found.beta)
            else:
                self.selection_ = "fixed"
                self.notes_.append("One image of some class: alpha and beta were not searched.")
        self.selected_ = {"alpha": head.alpha, "beta": head.beta}
        return head

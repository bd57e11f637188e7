"""Tip-Adapter: a cache of the support set beside the class weights (Zhang et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from handful.backbones import Backbone
from handful.cache import ALPHAS, BETAS, CacheHead, search
from handful.errors import check_number, unexpected
from handful.estimator import FewShotClassifier, Fitted, Learned, Task, Validation
from handful.heads import LARGEST, Head
from handful.selection import choose
from handful.types import Selection, Templates

PUBLISHED = {
    "imagenet": (7, 3), "caltech101": (12, 5), "dtd": (13, 13), "eurosat": (12, 10), "fgvc": (30, 30),
    "food101": (10, 10), "oxford_flowers": (50, 50), "oxford_pets": (7, 3), "stanford_cars": (20, 10),
    "sun397": (12, 10), "ucf101": (7, 3),
}  # fmt: skip
"""The published search scales, (beta, alpha): tuned for each data set by the authors."""


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
    """Give the head with the alpha and beta that a search finds; see `handful.cache.search`."""
    found = search(head, seen, *ranges_of(ranges))
    return replace(head, alpha=found.alpha, beta=found.beta)


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
        Residual ratio of the cache. The default is the published one, which is cautious: at scale 100 and
        beta 5.5, 3 to 5 was better at 1 to 16 shots of three data sets (docs/feature-methods.md).
    beta
        Sharpness of the affinities.
    selection
        `"fixed"`: alpha and beta as given. `"val"`: those that are right most often on
        `fit(..., validation=)`, alpha exactly for each beta; `"oracle"`: on the test set given there, as
        published for ImageNet. `"support"`: inside the support set, one whole shot of every class held out
        at a time, the likeliest of those that are right about as often as the best, and near the alpha given
        where all do as well (with one shot the fixed values are used).
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

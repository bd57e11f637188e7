"""Tip-Adapter and Tip-Adapter-F: a cache of the support set, as it is or trained (Zhang et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from handful.backbones import Backbone
from handful.errors import check_number, unexpected
from handful.estimator import FewShotClassifier, Task
from handful.heads import LARGEST, CacheHead, Head
from handful.search import Found, best_cache, best_cache_inside, cache_ranges
from handful.selection import check_selection, shot_numbers, smallest_class
from handful.train import Batch, seeded, shuffled, tip_recipe, train

BATCH_SIZE = 256
Selection = Literal["fixed", "support", "val", "oracle"]


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
        `"fixed"`: alpha and beta as given. Otherwise they are searched, alpha exactly for each beta:
        `"support"`, inside the support set, one whole shot of every class held out at a time (with
        one shot the fixed values are used); `"val"`, on `fit(..., validation=)`; `"oracle"`, on the
        test set given there, as published for ImageNet.
    ranges
        Where to search: `"wide"`, or the published ranges of a data set (`handful.search.PUBLISHED`).
    templates
        Of the text classifier.
    views
        Augmented views behind each key; the published recipe takes 10, 0 takes the image itself.
    seed
        Of the views.
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
        templates: str | Sequence[str] = "default",
        views: int = 0,
        seed: int = 0,
    ) -> None:
        self.backbone = backbone
        self.alpha = alpha
        self.beta = beta
        self.selection = selection
        self.ranges = ranges
        self.templates = templates
        self.views = views
        self.seed = seed

    def start(self, task: Task) -> CacheHead:
        """Store the support set, with alpha and beta as given."""
        check_selection(self.selection, ["fixed", "support", "val", "oracle"])
        cache_ranges(self.ranges)
        alpha, beta = check_number("alpha", self.alpha, 0), check_number("beta", self.beta, 0, above=True)
        if max(alpha, beta) > LARGEST:
            raise unexpected("alpha or beta", max(alpha, beta), f"a number up to {LARGEST:g}")
        keys = task.source.directions()
        return CacheHead(task.text_weights, keys, task.labels, task.scale, alpha, beta)

    def found_inside(self, head: CacheHead) -> Found | None:
        """Search on the support set itself; None at one shot, with a note."""
        if smallest_class(head.labels.numpy()) < 2:
            self.selection_ = "fixed"
            self.notes_.append("One image of some class: alpha and beta were not searched.")
            return None
        base, ranges = head.scale * head.keys @ head.class_weights.T, cache_ranges(self.ranges)
        return best_cache_inside(base, head.keys, head.labels, shot_numbers(head.labels), *ranges)

    def found_outside(self, head: CacheHead, task: Task) -> Found:
        """Search on validation images, or on what the oracle was given."""
        x, labels = nn.functional.normalize(task.held_out.features, dim=-1), task.held_out.labels
        base, ranges = head.scale * x @ head.class_weights.T, cache_ranges(self.ranges)
        return best_cache(base, lambda rows: x[rows] @ head.keys.T, head.labels, labels, *ranges)

    def settle(self, head: CacheHead, found: Found | None) -> CacheHead:
        """Take what a search found, and write it down."""
        if found is not None:
            head = replace(head, alpha=found.alpha, beta=found.beta)
        self.selected_ |= {"alpha": head.alpha, "beta": head.beta}
        return head

    def fit_head(self, task: Task) -> CacheHead:
        """Store the support set; choose alpha and beta if asked."""
        head = self.start(task)
        if self.selection == "support":
            return self.settle(head, self.found_inside(head))
        return self.settle(head, None if self.selection == "fixed" else self.found_outside(head, task))

    def refit_head(self, head: Head, task: Task) -> CacheHead:
        """Search again inside the support set; keep alpha and beta that other images chose."""
        if self.selection in ("fixed", "support"):
            return self.fit_head(task)
        assert isinstance(head, CacheHead)
        self.notes_.append("alpha and beta were chosen before classes or images were changed.")
        return self.settle(replace(self.start(task), alpha=head.alpha, beta=head.beta), None)


class TrainedCache(nn.Module):
    """Tip-Adapter's logits with trainable keys, `[NK, E]`; they are not normalised again (§3.3)."""

    def __init__(self, head: CacheHead) -> None:
        super().__init__()
        self.start, self.keys = head, nn.Parameter(head.keys.clone())

    @property
    def head(self) -> CacheHead:
        """The cache with the keys as they are now."""
        return replace(self.start, keys=self.keys.detach().clone())

    def forward(self, features: Tensor) -> Tensor:
        """Map features `[N, E]` to logits `[N, C]`."""
        return replace(self.start, keys=self.keys).logits(features)


class TipAdapterF(TipAdapter):
    """Tip-Adapter whose keys are trained, starting from the support set's features (§3.3).

    Trained at the alpha and beta given (`"support"`: at those that were found before training, since
    trained keys have seen every label). `"val"` searches them afterwards. `"oracle"` is the published
    recipe where it looks at the test set twice: the epoch that is best there is kept, and alpha and
    beta are searched there.

    Parameters
    ----------
    epochs, lr
        Of AdamW with epsilon 1e-4, batches of 256, a cosine at every step. The last epoch is kept.
    views
        Each key starts as the mean of its views, and training draws one view at each step; `"online"`
        is a fresh crop at every step, as published.
    training
        As for CoOp.
    backbone, alpha, beta, selection, ranges, templates, seed
        As for Tip-Adapter.
    """

    method: ClassVar[str] = "tip-adapter-f"
    trains: ClassVar[bool] = True
    online: ClassVar[bool] = False

    def __init__(
        self,
        backbone: Backbone | str | None = None,
        *,
        alpha: float = 1.17,
        beta: float = 5.5,
        selection: Selection = "fixed",
        ranges: str = "wide",
        epochs: int = 20,
        lr: float = 0.001,
        templates: str | Sequence[str] = "default",
        views: int | Literal["online"] = 10,
        training: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            backbone,
            alpha=alpha,
            beta=beta,
            selection=selection,
            ranges=ranges,
            templates=templates,
            seed=seed,
        )
        self.views = views  # type: ignore[assignment]
        self.epochs = epochs
        self.lr = lr
        self.training = training

    def fit_head(self, task: Task) -> CacheHead:
        """Train the keys, and choose alpha and beta before or after."""
        recipe = tip_recipe(self.epochs, BATCH_SIZE, self.lr).change(self.training)
        generator = seeded(self.seed)
        head = self.start(task)
        head = self.settle(head, self.found_inside(head) if self.selection == "support" else None)
        model, kept, best, done = TrainedCache(head), head, -1.0, 0

        def epoch() -> Iterator[Batch]:
            nonlocal kept, best, done
            yield from shuffled(task.source, task.labels, BATCH_SIZE, generator, keep_last=True)
            done += 1
            if self.selection == "oracle":
                score = task.held_out.accuracy(model.head.logits)
                if score > best:
                    kept, best, self.selected_["epochs"] = model.head, score, done

        self.selected_["epochs"] = recipe.epochs
        steps = math.ceil(len(task.labels) / BATCH_SIZE)
        key = None if self.selection == "oracle" else task.key  # the best epoch is not kept
        self.losses_ = train(model, epoch, recipe, steps, generator=generator, key=key)
        if self.selection == "oracle":
            return self.settle(kept, self.found_outside(kept, task))
        head = model.head
        return self.settle(head, self.found_outside(head, task)) if self.selection == "val" else head

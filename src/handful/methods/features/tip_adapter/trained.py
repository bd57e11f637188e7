"""Tip-Adapter-F: the cache of Tip-Adapter with keys that are trained (Zhang et al. 2022, §3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from handful.backbones import Backbone
from handful.cache import CacheHead, search_held_out
from handful.estimator import Learned, Task, Validation
from handful.methods.features.tip_adapter import TipAdapter, chosen, ranges_of, searched
from handful.schedule import tip_schedule
from handful.selection import choose
from handful.train import Run
from handful.types import Selection, Templates

BATCH_SIZE = 256


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
        return replace(self.start, keys=self.keys).read(features)


class Trained(NamedTuple):
    """A cache with trained keys, its training, and the epochs after which it was kept."""

    head: CacheHead
    run: Run
    epochs: int


class TipAdapterF(TipAdapter):
    """Tip-Adapter whose keys are trained, starting from the support set's features (§3.3).

    Trained at the alpha and beta given. `"val"` searches them afterwards. `"support"` too, on images that
    the keys were not trained on: keys are also trained on all but one shot of every class in turn, in at
    most 4 folds, which is up to four trainings more. (At an alpha that was found before training, each image
    is explained by its own key, and there is nothing to learn.) `"oracle"` is the published recipe where it
    looks at the test set twice: the epoch that is best there is kept, and alpha and beta are searched there.

    Parameters
    ----------
    epochs, lr
        Of AdamW with epsilon 1e-4, batches of 256, a cosine at every step. The last epoch is kept.
    views
        Each key starts as the mean of its views, and training draws one view at each step; `"online"`
        is a fresh crop at every step, as published.
    training
        As for CoOp.
    balance
        As for Tip-Adapter, and training draws as many images of each class.
    backbone, alpha, beta, selection, ranges, templates, seed
        As for Tip-Adapter.
    class_names
        Names of the classes, for labels that scikit-learn encodes as integers; see `fit`.
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
        templates: Templates = "default",
        views: int | Literal["online"] = 10,
        training: dict[str, Any] | None = None,
        seed: int = 0,
        balance: bool = True,
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(
            backbone, alpha=alpha, beta=beta, selection=selection, ranges=ranges, templates=templates,
            views=views, seed=seed, balance=balance, class_names=class_names,
        )  # fmt: skip
        self.epochs = epochs
        self.lr = lr
        self.training = training

    def learn(self, task: Task) -> Learned:
        """Train the keys, and choose alpha and beta before or after."""
        start = self.cache(task)

        def retrain(kept: Tensor) -> CacheHead:
            some = task.choose(kept)
            return self.train(some, self.cache(some)).head

        def search(seen: Validation | None) -> Trained:
            if seen is None:
                trained = self.train(task, start)
                found = search_held_out(start, retrain, *ranges_of(self.ranges))
                return trained._replace(head=replace(trained.head, alpha=found.alpha, beta=found.beta))
            trained = self.train(task, start, seen if self.selection == "oracle" else None)
            return trained._replace(head=searched(trained.head, seen, self.ranges))

        choice = choose(self.selection, task, lambda: self.train(task, start), search, "alpha and beta")
        head, run, epochs = choice.value
        return Learned.trained(head, run, choice, **chosen(head), epochs=epochs)

    def train(self, task: Task, head: CacheHead, judge: Validation | None = None) -> Trained:
        """Train the keys; keep the last epoch, or the one that is best on the images of a judge."""
        schedule = tip_schedule(self.epochs, BATCH_SIZE, self.lr, self.seed).change(self.training)
        model, best = TrainedCache(head), (-1.0, head, 0)

        def look(epoch: int) -> None:
            nonlocal best
            if judge is not None and (score := judge.accuracy(model.head.read)) > best[0]:
                best = score, model.head, epoch

        key = task.key if judge is None else None  # the best epoch is not kept
        run = task.train(model, schedule, schedule.generator(), after_epoch=look, key=key)
        return Trained(model.head, run, schedule.epochs) if judge is None else Trained(best[1], run, best[2])

"""MMA: adapters in the upper blocks of both towers, joined by one projection (Yang et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from handful.backbones import Backbone, Tower
from handful.errors import check_integer, check_number, unexpected
from handful.estimator import FewShotClassifier, Learned, Task
from handful.features.views import InputStage
from handful.heads import Head, Shapes
from handful.methods.towers.mma.network import SIDES, MmaHead, ModalAdapters, rebuild, shapes_of
from handful.prompts import template_tokens
from handful.schedule import COOP_CROPS, IMAGENET
from handful.towers import ImagePass, TwoTowers, join, text_pass
from handful.towers.pair import Pairs
from handful.types import Templates

FIRST = 5 / 12
"""Where the first adapter sits: block 5 of 12, as published for base-to-new."""
BATCH, MANY = 16, 128
"""Images of a step, and from 1,000 classes on."""


def pair_blocks(towers: dict[str, Tower], first: int | None, last: int | None) -> Pairs:
    """Say which blocks have adapters; None for `first` is block 5 of 12, or that share of another depth."""
    if first is None:
        first = max(round(FIRST * min(len(tower.require_blocks("MMA")) for tower in towers.values())), 1)
    return join("MMA", towers, first, last)


class MMA(FewShotClassifier):
    """Multi-modal adapter: small adapters beside the upper blocks of both towers, one projection for both.

    The lower blocks, which say less of the data set, stay as they are (`handful analyze layers` shows
    why). It needs a transformer on each side that has adapters.

    Parameters
    ----------
    backbone
        A backbone, or the name of one.
    first_block, last_block
        Which blocks have adapters, counted from 1; None for 5 of 12 (or that share of another
        depth) and for the last. 5 is published for base-to-new, 9 with one epoch for other data
        sets. In towers of unequal depth they count the shallower one's, and the other has its
        adapters at the same shares of its depth (`join`).
    width
        H, of the bottleneck.
    alpha
        Of the adapter beside the block; 0 is zero-shot.
    shared
        Whether the projection between Down and Up belongs to both towers.
    side
        Which towers have adapters: `"both"`, `"image"` or `"text"`.
    template
        Of the prompts; one for every data set, as published.
    epochs, lr, batch_size
        5, 0.0015, and 16 (128 from 1,000 classes on) as published; SGD with momentum 0.9 and weight
        decay 5e-4, a cosine, no warm-up. The last step is kept.
    views
        Cached augmented views of each image; `"online"` for a fresh crop at every step, as
        published; 0 takes the image itself. Few are needed for few epochs.
    cache
        Where the tokens that enter the first adapted block are kept, so that the frozen blocks run
        once for each view: `"memory"`, `"disk"`, `"off"` (they run at every step), or `"auto"` for
        the first of these that has room. The numbers are the same.
    training
        Settings of the training loop that differ, as in `{"precision": "bfloat16", "accumulate": 4,
        "clip": 1.0}`: see `handful.schedule.Schedule`.
    seed
        Of the views, the start and the order of the images.
    balance
        Whether classes count alike where they have unequal numbers of images: an epoch then draws as many of
        each class, and repeats those of classes that have few.
    class_names
        Names of the classes, for labels that scikit-learn encodes as integers; see `fit`.
    """

    method: ClassVar[str] = "mma"
    uses_tower: ClassVar[bool] = True
    text_parameter: ClassVar[str] = "template"
    trains: ClassVar[bool] = True
    crop_scale: ClassVar[tuple[float, float]] = COOP_CROPS
    head_type: ClassVar[type[Head]] = MmaHead

    def __init__(
        self,
        backbone: Backbone | str | None = None,
        *,
        first_block: int | None = None,
        last_block: int | None = None,
        width: int = 32,
        alpha: float = 0.001,
        shared: bool = True,
        side: Literal["both", "image", "text"] = "both",
        template: Templates = "a photo of a {}.",
        epochs: int = 5,
        lr: float = 0.0015,
        batch_size: int | Literal["auto"] = "auto",
        views: int | Literal["online"] = 4,
        cache: Literal["auto", "memory", "disk", "off"] = "auto",
        training: dict[str, Any] | None = None,
        seed: int = 0,
        balance: bool = True,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.backbone, self.first_block, self.last_block = backbone, first_block, last_block
        self.width, self.alpha, self.shared = width, alpha, shared
        self.side, self.template = side, template
        self.epochs, self.lr, self.batch_size = epochs, lr, batch_size
        self.views, self.cache, self.training, self.seed = views, cache, training, seed
        self.balance = balance
        self.class_names = class_names

    def pairs(self, backbone: Backbone) -> Pairs:
        """Say which blocks of a backbone have adapters."""
        towers = {side: getattr(backbone, side) for side in self.sides()}
        return pair_blocks(towers, self.first_block, self.last_block)

    def sides(self) -> tuple[str, ...]:
        """Which towers have adapters."""
        if not isinstance(self.side, str) or self.side not in SIDES:
            raise unexpected("side", self.side, f"one of {list(SIDES)}")
        return SIDES[self.side]

    def input_stage(self, backbone: Backbone) -> InputStage | None:
        """Read training images as the tokens that enter the first adapted block."""
        if "image" not in self.sides():
            return None
        return ImagePass(backbone, next(iter(self.pairs(backbone).values()))["image"]).enter

    def start(self, backbone: Backbone, generator: torch.Generator) -> ModalAdapters:
        """Give the adapters before training."""
        widths = {side: getattr(backbone, side).width for side in self.sides()}
        hidden = check_integer("width", self.width, 1)
        alpha = check_number("alpha", self.alpha, 0)
        if not isinstance(self.shared, bool):
            raise unexpected("shared", self.shared, "True or False")
        return ModalAdapters(widths, list(self.pairs(backbone)), hidden, alpha, self.shared).reset(generator)

    def learner(self, task: Task, adapters: ModalAdapters) -> TwoTowers:
        """Put adapters into the towers, for the class names of a task."""
        backbone, adapters = task.backbone, adapters.to(task.backbone.device)
        pairs = self.pairs(backbone)
        after = {side: adapters.after(side, getattr(backbone, side), pairs) for side in adapters.down}
        prompts = template_tokens(backbone, task.class_names, self.template)
        return TwoTowers(backbone, text_pass(backbone, *prompts), adapters, after)

    def learn(self, task: Task) -> Learned:
        """Train the adapters."""
        own: dict[str, Any] = {"warmup_lr": None}
        if isinstance(self.batch_size, str) and self.batch_size == "auto":
            own["batch_size"] = MANY if len(task.class_names) >= IMAGENET else BATCH
        schedule, numbers = self.schedule(task, **own), list(self.pairs(task.backbone))
        generator = schedule.generator()
        model = self.learner(task, self.start(task.backbone, generator))
        run = task.train(model, schedule, generator)
        learned = {name: value.detach().cpu() for name, value in model.added.state_dict().items()}
        return Learned.trained(
            self.build(task, learned), run,
            first_block=numbers[0], last_block=numbers[-1], batch_size=schedule.batch_size,
        )  # fmt: skip

    def learned_shapes(self, classes: int, backbone: Backbone | None) -> Shapes:
        """Adapters of each side; the head checks them alone where there is no backbone."""
        if backbone is None:
            return {}
        widths = {side: getattr(backbone, side).width for side in self.sides()}
        return shapes_of(
            widths, list(self.pairs(backbone)), check_integer("width", self.width, 1), self.shared
        )

    @torch.no_grad()
    def build(self, task: Task, learned: dict[str, Tensor]) -> MmaHead:
        """Collapse the text side to class weights; keep the image side."""
        alpha = check_number("alpha", self.alpha, 0)
        weights = self.learner(task, rebuild(learned, alpha)).class_weights()
        return MmaHead(weights.cpu(), task.scale, learned, task.backbone, alpha)

"""How to train: epochs, batches, learning rates and optimizers, as published, and the seed of it all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from handful.errors import check_integer, check_number, unexpected

LARGEST = 1e38
"""What float32 can still hold."""
IMAGENET = 1000
"""Classes from which on a task counts as ImageNet does, which is trained for fewer epochs."""
ADJUSTABLE = ("precision", "accumulate", "clip", "momentum", "weight_decay", "warmup_lr")
"""Settings of the loop that every trained method takes in its `training`."""
COOP_CROPS = (0.08, 1.0)
"""Share of an image's area that a view of the CoOp family holds."""
Optimizer = Literal["sgd", "adam", "adamw"]


@dataclass(frozen=True)
class Schedule:
    """How to train: the settings of the CoOp family unless told otherwise (Zhou et al. 2022a, §4.1 and code).

    Attributes
    ----------
    epochs, batch_size
        Passes over the support set, and images of a step.
    lr, momentum, weight_decay
        Of the optimizer; for SGD the last two are hidden defaults of the published code.
    seed
        Of the start, of the views and of the order of the images.
    optimizer, eps
        `"sgd"`, `"adam"` or `"adamw"`, and the epsilon of the last two.
    warmup_lr
        Learning rate of a first, constant epoch that delays the cosine by one, and never above `lr`; None for
        no such epoch.
    by_step
        The cosine falls at every step, and an epoch keeps its last, smaller batch; else the
        cosine falls with the epoch, and that batch is dropped, as the CoOp family does.
    precision
        `"float32"`, or `"bfloat16"` for autocast in the forward pass; weights stay in float32.
    accumulate
        Pieces that a batch goes through in, whose gradients add up: the same step in less memory.
    clip
        Largest norm of the gradient; None for any.
    """

    epochs: int
    batch_size: int = 32
    lr: float = 0.002
    seed: int = 0
    optimizer: Optimizer = "sgd"
    eps: float = 1e-8
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_lr: float | None = 1e-5
    by_step: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    accumulate: int = 1
    clip: float | None = None

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {
            name: check_integer(name, getattr(self, name), 1)
            for name in ("epochs", "batch_size", "accumulate")
        }
        checked["lr"] = check_number("lr", self.lr, 0, above=True)
        if self.lr > LARGEST:
            raise unexpected("lr", self.lr, f"a number up to {LARGEST:g}")
        for name in ("momentum", "weight_decay", "warmup_lr", "clip"):
            if getattr(self, name) is not None or name in ("momentum", "weight_decay"):
                checked[name] = check_number(name, getattr(self, name), 0, above=name == "clip")
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.momentum >= 1:
            raise unexpected("momentum", self.momentum, "a number from 0 to below 1")
        if not isinstance(self.precision, str) or self.precision not in ("float32", "bfloat16"):
            raise unexpected("precision", self.precision, "'float32' or 'bfloat16'")
        if self.optimizer not in get_args(Optimizer):
            raise unexpected("optimizer", self.optimizer, f"one of {list(get_args(Optimizer))}")

    def change(self, training: Mapping[str, Any] | None) -> Schedule:
        """Give the schedule with some of ADJUSTABLE changed, as a method's `training` asks."""
        if training is None:
            return self
        if not isinstance(training, Mapping) or not set(training) <= set(ADJUSTABLE):
            raise unexpected("training", training, f"None, or a dict with some of {list(ADJUSTABLE)}")
        if self.optimizer != "sgd" and "momentum" in training:
            raise unexpected(
                "training", dict(training), f"no momentum for a method that is trained by {self.optimizer}"
            )
        return replace(self, **training)

    def generator(self) -> torch.Generator:
        """Give the generator that start, views and order are drawn from, one after the other."""
        return seeded(self.seed)

    def build_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Give the optimizer; the loop sets its learning rate."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                parameters, self.lr, momentum=self.momentum, weight_decay=self.weight_decay
            )
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return kind(parameters, self.lr, eps=self.eps, weight_decay=self.weight_decay)

    def learning_rate(self, epoch: float) -> float:
        """Give the learning rate at a time counted in epochs from 0.

        `lr (1 + cos(pi e / T)) / 2`; with a warm-up, `warmup_lr` first, and then the same one epoch
        late, so that the cosine never reaches 0.
        """
        late = 0 if self.warmup_lr is None else 1
        if late and epoch < 1:
            return min(float(self.warmup_lr or 0), self.lr)
        return self.lr * (1 + math.cos(math.pi * (epoch - late) / self.epochs)) / 2

    def steps(self, images: int) -> int:
        """Give the steps of an epoch."""
        steps = images / self.batch_size
        return math.ceil(steps) if self.by_step else max(math.floor(steps), 1)


def tip_schedule(epochs: int, batch_size: int, lr: float, seed: int = 0) -> Schedule:
    """Give the Tip family's settings: AdamW, a cosine by steps, no warm-up (Zhang et al. 2022, code)."""
    return Schedule(
        epochs, batch_size, lr, seed, "adamw", eps=1e-4, weight_decay=0.01, warmup_lr=None, by_step=True
    )


def epochs_by_shots(labels: Tensor) -> int:
    """Give CoOp's epochs: 50 at 1 shot, 100 at 2 and 4, 200 at 8 and 16 (Zhou et al. 2022a, §4.1).

    A support set of unequal classes counts as its mean shots; 1,000 classes, as ImageNet has, get
    50 whatever the shots.
    """
    classes = max(len(labels.unique()), 1)
    shots = len(labels) / classes
    return 50 if shots < 1.5 or classes >= IMAGENET else 100 if shots < 6 else 200


def choose_epochs(epochs: int | Literal["auto"], labels: Tensor) -> int:
    """Give CoOp's epochs for `"auto"`, and anything else as it is, for the schedule to check."""
    if isinstance(epochs, str) and epochs == "auto":  # an array would compare element by element
        return epochs_by_shots(labels)
    return epochs


def seeded(seed: int) -> torch.Generator:
    """Give a generator for a seed."""
    if not -(2**63) <= check_integer("seed", seed) < 2**63:
        raise unexpected("seed", seed, "an integer of 64 bits")
    return torch.Generator().manual_seed(int(seed))

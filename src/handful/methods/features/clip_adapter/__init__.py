"""CLIP-Adapter: a bottleneck on features, blended with what it reads (Gao et al. 2021)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from handful.backbones import Backbone
from handful.errors import CheckpointError, check_integer, check_number, unexpected
from handful.estimator import FewShotClassifier, Learned, Task, Validation
from handful.heads import Head, Shapes
from handful.methods.features.clip_adapter.network import (
    SIDES,
    Adapted,
    Adapter,
    AdapterHead,
    adapters,
    shapes_of,
)
from handful.schedule import COOP_CROPS, IMAGENET, Schedule, seeded
from handful.selection import choose, first_shots
from handful.train import Run
from handful.types import Templates

NAMES = {"image": "alpha", "text": "beta"}
RATIOS = (0.2, 0.4, 0.6, 0.8)
"""Ratios that a search trains at: the article's, but for 0 and 1 (its figure of the residual ratio)."""
TRIAL_STEPS = 3000
"""Steps of a trial inside the support set, at most."""
AT_100, BATCH = 0.002, 32
"""CoOp's learning rate, which is meant for CLIP's scale of 100, and its batches."""
MANY = {"batch_size": 256, "epochs": 20, "trial_epochs": 2}
"""From 1,000 classes on, where an epoch is long: batch and epochs of Tip-Adapter-F."""


class Trained(NamedTuple):
    """Adapters, their training, and what is to be told of it."""

    model: Adapted
    run: Run
    selected: dict[str, Any]


class ClipAdapter(FewShotClassifier):
    """A small network that rewrites image features, class weights, or both, and is blended with them.

    Parameters
    ----------
    backbone
        A backbone, or the name of one.
    side
        `"image"` (released by the authors, and their best), `"text"` or `"both"`.
    reduction
        E over the width of the bottleneck; 4 is the published best.
    alpha, beta
        Ratios of the image and the text adapter in the blend, during training; 0 is zero-shot.
    selection
        How the ratios are chosen. `"support"`: one shot of every class is held out, adapters are
        trained on the rest at each of 0.2, 0.4, 0.6 and 0.8, and the ratio to use each with is
        searched, exactly for the image side; the best serve adapters that are trained on all (with
        one shot, the ratios given). `"val"`: the same on `fit(..., validation=)`; `"oracle"`: on the
        test set given there, as the article's best result of each data set. `"fixed"`: as given.
    learn_ratio
        Learn the ratios by gradient, from alpha and beta on, in place of any search.
    templates
        Of the text classifier.
    lr
        `"auto"` is CoOp's 0.002, which the published code takes over, at CLIP's scale of 100, and
        `0.002 (100 / scale)^2` at another, where a step moves the logits as much; it grows with the
        batch. (The article names 1e-5, with which the adapter hardly moves.)
    epochs, batch_size
        `"auto"` is CoOp's; from 1,000 classes on it is 20 epochs of batches of 256, which are as
        good on drawn features and several times faster.
    views, training, seed, balance
        As for CoOp.
    class_names
        Names of the classes, for labels that scikit-learn encodes as integers; see `fit`.
    """

    method: ClassVar[str] = "clip-adapter"
    trains: ClassVar[bool] = True
    crop_scale: ClassVar[tuple[float, float]] = COOP_CROPS
    head_type: ClassVar[type[Head]] = AdapterHead

    def __init__(
        self,
        backbone: Backbone | str | None = None,
        *,
        side: Literal["image", "text", "both"] = "image",
        reduction: int = 4,
        alpha: float = 0.2,
        beta: float = 0.2,
        selection: Literal["support", "fixed", "val", "oracle"] = "support",
        learn_ratio: bool = False,
        templates: Templates = "default",
        epochs: int | Literal["auto"] = "auto",
        lr: float | Literal["auto"] = "auto",
        batch_size: int | Literal["auto"] = "auto",
        views: int | Literal["online"] = 8,
        training: dict[str, Any] | None = None,
        seed: int = 0,
        balance: bool = True,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.backbone, self.side, self.reduction = backbone, side, reduction
        self.alpha, self.beta, self.selection = alpha, beta, selection
        self.learn_ratio, self.templates = learn_ratio, templates
        self.epochs, self.lr, self.batch_size = epochs, lr, batch_size
        self.views, self.training, self.seed, self.balance = views, training, seed, balance
        self.class_names = class_names

    def schedule(self, task: Task, **own: Any) -> Schedule:
        """Give the settings of training, the `"auto"` ones found out."""
        many, lr = len(task.class_names) >= IMAGENET, self.lr
        if self.batch_size == "auto":
            own["batch_size"] = MANY["batch_size"] if many else BATCH
        if self.epochs == "auto" and many:
            own["epochs"] = MANY["epochs"]
        found = super().schedule(task, **{**own, "lr": AT_100 if lr == "auto" else lr})
        if lr != "auto":
            return found
        return replace(found, lr=AT_100 * (100 / task.scale) ** 2 * found.batch_size / BATCH)

    def start(self, width: int, ratios: dict[str, float], generator: torch.Generator) -> dict[str, Adapter]:
        """Give the adapters before training, as PyTorch's linear layers start."""
        hidden = max(width // check_integer("reduction", self.reduction, 1), 1)

        def layer(rows: int, columns: int) -> Tensor:
            return (2 * torch.rand(rows, columns, generator=generator) - 1) / columns**0.5

        return {
            name: Adapter(layer(hidden, width), layer(width, hidden), ratios[name], self.learn_ratio)
            for name in SIDES[self.side]
        }

    def train(self, task: Task, ratios: dict[str, float], trial: bool = False) -> Trained:
        """Train adapters on a support set, at the ratios given; a trial is shorter."""
        schedule = self.schedule(task)
        if trial:
            many, steps = len(task.class_names) >= IMAGENET, max(len(task.labels) // schedule.batch_size, 1)
            most = MANY["trial_epochs"] if many else max(TRIAL_STEPS // steps, 1)
            schedule = replace(schedule, epochs=min(schedule.epochs, most))
        generator = schedule.generator()
        sides = self.start(task.class_weights.shape[1], ratios, generator)
        model = Adapted(sides, task.class_weights, task.scale)
        run = task.train(model, schedule, generator)
        return Trained(model, run, {"epochs": schedule.epochs, "lr": schedule.lr})

    def search(self, task: Task, seen: Validation, trial: bool = False) -> Trained:
        """Train at each of RATIOS, search the ratio to use each with, and give the first best."""
        runs = []
        for ratio in RATIOS:
            found = self.train(task, dict.fromkeys(SIDES["both"], ratio), trial)
            found.selected["trained_at"] = ratio
            runs.append((found.model.search(seen), found))
        return max(runs, key=lambda pair: pair[0])[1]

    def search_inside(self, task: Task) -> Trained:
        """Search on one shot of every class that is held out, then train on all of them."""
        out = first_shots(task.labels)
        seen = Validation(task.inputs[out.numpy()].pooled(), task.labels[out])
        trial = self.search(task.choose(~out), seen, True)
        ratio = trial.selected["trained_at"]
        found = self.train(task, dict.fromkeys(SIDES["both"], ratio))
        for name, adapter in found.model.sides.items():
            adapter.fixed = trial.model.sides[name].fixed
        return found._replace(selected={**found.selected, "trained_at": ratio})

    def learn(self, task: Task) -> Learned:
        """Choose the ratios as asked, and train the adapters on the whole support set."""
        ratios = self.checked_ratios()
        if self.learn_ratio and self.selection in ("val", "oracle"):
            raise unexpected("selection", self.selection, "'fixed' or 'support' with learn_ratio=True")
        choice = choose(
            "fixed" if self.learn_ratio else self.selection, task, lambda: self.train(task, ratios),
            lambda seen: self.search_inside(task) if seen is None else self.search(task.with_key(None), seen),
            "the ratios",
        )  # fmt: skip
        model, run, selected = choice.value
        for name, adapter in model.sides.items():
            selected[NAMES[name]] = round(float(adapter.ratio.detach()), 6)
        notes = self.warn_if_dead(model, task, selected)
        return Learned.trained(self.build(task, model.learned()), run, choice, notes, **selected)

    def checked_ratios(self) -> dict[str, float]:
        """Give the ratios of both sides as the user set them."""
        if not isinstance(self.side, str) or self.side not in SIDES:
            raise unexpected("side", self.side, f"one of {list(SIDES)}")
        ratios = {side: check_number(name, getattr(self, name), 0) for side, name in NAMES.items()}
        for side, ratio in ratios.items():
            if ratio > 1 or (self.learn_ratio and ratio in (0, 1)):
                raise unexpected(NAMES[side], ratio, "a ratio from 0 to 1, and inside them to be learned")
        return ratios

    @torch.no_grad()
    def warn_if_dead(self, model: Adapted, task: Task, selected: dict[str, Any]) -> tuple[str, ...]:
        """Say so where an adapter gives nothing but zeros: its last ReLU can die for good."""
        dead = []
        for name, adapter in model.sides.items():
            rows, generator = torch.arange(len(task.labels)), seeded(self.seed)
            x = task.class_weights if name == "text" else task.inputs.sample(rows, generator)
            zeros = float((adapter.read(x) == 0).double().mean())
            selected[f"{name}_zeros"] = round(zeros, 3)
            if zeros == 1:
                dead.append(f"The {name} adapter died: it gives only zeros. Got lr={self.lr!r}: lower it.")
                warnings.warn(dead[-1], stacklevel=2)
        return tuple(dead)

    def learned_shapes(self, classes: int, backbone: Backbone | None) -> Shapes:
        """Adapters of each side."""
        if not isinstance(self.side, str) or self.side not in SIDES:
            raise CheckpointError(f"Got side={self.side!r}, expected one of {list(SIDES)}.")
        return shapes_of(SIDES[self.side], "H", backbone.joint_width if backbone else "E")

    @torch.no_grad()
    def build(self, task: Task, learned: dict[str, Tensor]) -> AdapterHead:
        """Adapt the class weights once and for all."""
        model = Adapted(adapters(learned), task.class_weights, task.scale)
        return AdapterHead(model.class_weights(), task.scale, learned)

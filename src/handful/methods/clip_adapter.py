"""CLIP-Adapter: a bottleneck on features, blended with what it reads (Gao et al. 2021)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handful.backbones import Backbone
from handful.errors import CheckpointError, check_integer, check_number, unexpected
from handful.estimator import FewShotClassifier, Task, Validation
from handful.heads import Head, Place, Shapes, TextHead, expect
from handful.search import best_ratio
from handful.selection import check_selection, first_shots, smallest_class
from handful.train import IMAGENET, Recipe, choose_epochs, seeded, train_on

PARTS = ("down", "up", "ratio")
SIDES = {"image": ("image",), "text": ("text",), "both": ("image", "text")}
NAMES = {"image": "alpha", "text": "beta"}
RATIOS = (0.2, 0.4, 0.6, 0.8)
"""Ratios that a search trains at: the article's, but for 0 and 1 (its figure of the residual ratio)."""
TRIAL_STEPS = 3000
"""Steps of a trial inside the support set, at most."""
AT_100 = 0.002
"""CoOp's learning rate, which is meant for CLIP's scale of 100 and batches of BATCH."""
BATCH = 32
MANY = {"batch_size": 256, "epochs": 20, "trial_epochs": 2}
"""From 1,000 classes on, where an epoch is long: batch and epochs of Tip-Adapter-F."""
TOP = 0.95
"""Largest ratio that a search gives: at 1 nothing of CLIP is left."""
TEXT_RATIOS = tuple(0.05 * number for number in range(20))
"""Ratios of the text side that a search looks at: its logits are not linear in them."""


class Adapter(nn.Module):
    """`norm(ratio A(f) + (1 - ratio) f)`, `A(f) = relu(relu(f W1) W2)`: equations 1 to 5, no biases.

    The second ReLU is in the published code, not in the article, and so is the order: blend first,
    normalise after. Only the direction of f matters, since A is positively homogeneous.

    Parameters
    ----------
    down, up
        `[H, E]` and `[E, H]`.
    ratio
        Of the adapter in the blend, 0 to 1; with `learn_ratio` the start of `sigmoid(odds)`.
    """

    def __init__(self, down: Tensor, up: Tensor, ratio: float, learn_ratio: bool = False) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(down.clone()), nn.Parameter(up.clone())
        self.fixed = torch.tensor(float(ratio))
        self.odds = nn.Parameter(self.fixed.logit()) if learn_ratio else None

    @property
    def ratio(self) -> Tensor:
        """The ratio, fixed or learned."""
        return self.fixed if self.odds is None else self.odds.sigmoid()

    def read(self, x: Tensor) -> Tensor:
        """A alone: `[N, E]` to `[N, E]`, nowhere negative."""
        return F.relu(F.linear(F.relu(F.linear(x, self.down)), self.up))

    def forward(self, x: Tensor) -> Tensor:
        """Map features `[N, E]` to unit features `[N, E]`."""
        return F.normalize(self.ratio * self.read(x) + (1 - self.ratio) * x, dim=-1)


class Adapted(nn.Module):
    """Cosine logits between adapted images and adapted class weights; a side may have no adapter."""

    def __init__(self, sides: dict[str, Adapter], text: Tensor, scale: float) -> None:
        super().__init__()
        self.sides, self.scale = sides, scale
        self.trained, self.text = nn.ModuleDict(sides), F.normalize(text, dim=-1)

    def class_weights(self) -> Tensor:
        """`[C, E]`, rows of unit norm."""
        return self.sides["text"](self.text) if "text" in self.sides else self.text

    def forward(self, features: Tensor) -> Tensor:
        """Map features `[N, E]` to logits `[N, C]`."""
        image = self.sides.get("image", F.normalize)
        return self.scale * image(features) @ self.class_weights().T

    def learned(self) -> dict[str, Tensor]:
        """What was learned: `down`, `up` and `ratio` of each side."""
        return {
            f"{name}.{part}": getattr(adapter, part).detach().clone()
            for name, adapter in self.sides.items()
            for part in PARTS
        }

    @torch.no_grad()
    def search(self, seen: Validation) -> float:
        """Set the ratios that are right most often on some images, and give how often that is.

        Without the norm, which changes no decision, logits are linear in `ratio / (1 - ratio)` of the
        image side: its ratio is exact, between 0 and TOP, for each of TEXT_RATIOS.
        """
        x, best, found = F.normalize(seen.features, dim=-1), -1.0, dict[str, Tensor]()
        for text_ratio in TEXT_RATIOS if "text" in self.sides else (0.0,):
            if "text" in self.sides:
                self.sides["text"].fixed = torch.tensor(text_ratio)
            weights, odds = self.class_weights(), 0.0
            if "image" in self.sides:
                extra = self.sides["image"].read(x) @ weights.T
                odds, right = best_ratio(x @ weights.T, extra, seen.labels, 0.0, TOP / (1 - TOP))
            else:
                right = float(((x @ weights.T).argmax(1) == seen.labels).double().mean())
            if right > best:
                best = right
                found = {"image": torch.tensor(odds / (1 + odds)), "text": torch.tensor(text_ratio)}
        for name, adapter in self.sides.items():
            adapter.fixed = found[name]
        return best


@dataclass(frozen=True)
class AdapterHead(TextHead):
    """What stays: class weights, adapted already, and `down`, `up` and `ratio` of each side."""

    kind: ClassVar[str] = "adapter"

    @torch.no_grad()
    def adapt(self, features: Tensor) -> Tensor:
        """Send features through the image side's adapter, where there is one."""
        return adapters(self.learned).get("image", super().adapt)(features)

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], settings: dict[str, Any], place: Place) -> Self:
        """Check the adapters' shapes against the class weights, and build."""
        sides = {name.split(".")[0] for name in tensors.keys() - {"class_weights"}}
        expect(tensors, {"class_weights": (len(place.class_names), "E"), **_shapes(sorted(sides), "H", "E")})
        return super().restore(tensors, settings, place)


def adapters(learned: dict[str, Tensor]) -> dict[str, Adapter]:
    """Build the adapters of each side from what was learned."""
    return {
        name: Adapter(learned[f"{name}.down"], learned[f"{name}.up"], float(learned[f"{name}.ratio"]))
        for name in SIDES["both"]
        if f"{name}.ratio" in learned
    }


def _shapes(sides: Sequence[str], hidden: int | str, width: int | str) -> Shapes:
    return {
        f"{side}.{part}": shape
        for side in sides
        for part, shape in (("down", (hidden, width)), ("up", (width, hidden)), ("ratio", ()))
    }


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
        batch. (The article names 1e-5, with which the adapter hardly moves: methods.md §4.2.)
    epochs, batch_size
        `"auto"` is CoOp's; from 1,000 classes on it is 20 epochs of batches of 256, which are as
        good on drawn features and several times faster.
    views, training, seed
        As for CoOp.
    """

    method: ClassVar[str] = "clip-adapter"
    trains: ClassVar[bool] = True
    crop_scale: ClassVar[tuple[float, float]] = (0.08, 1.0)
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
        templates: str | Sequence[str] = "default",
        epochs: int | Literal["auto"] = "auto",
        lr: float | Literal["auto"] = "auto",
        batch_size: int | Literal["auto"] = "auto",
        views: int | Literal["online"] = 8,
        training: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        self.backbone = backbone
        self.side = side
        self.reduction = reduction
        self.alpha = alpha
        self.beta = beta
        self.selection = selection
        self.learn_ratio = learn_ratio
        self.templates = templates
        self.epochs = epochs
        self.lr = lr
        self.batch_size = batch_size
        self.views = views
        self.training = training
        self.seed = seed

    def start(self, width: int, ratios: dict[str, float], generator: torch.Generator) -> dict[str, Adapter]:
        """Give the adapters before training, as PyTorch's linear layers start."""
        hidden = max(width // check_integer("reduction", self.reduction, 1), 1)

        def layer(rows: int, columns: int) -> Tensor:
            return (2 * torch.rand(rows, columns, generator=generator) - 1) / columns**0.5

        return {
            name: Adapter(layer(hidden, width), layer(width, hidden), ratios[name], self.learn_ratio)
            for name in SIDES[self.side]
        }

    def train(
        self, task: Task, rows: Tensor, ratios: dict[str, float], trial: bool = False, key: str | None = None
    ) -> Adapted:
        """Train adapters on some rows of the support set; a trial is shorter."""
        labels, generator = task.labels[rows], seeded(self.seed)
        recipe = self.recipe(task, labels)
        if trial:
            steps = max(len(labels) // recipe.batch_size, 1)
            most = MANY["trial_epochs"] if self.many(task) else max(TRIAL_STEPS // steps, 1)
            recipe = replace(recipe, epochs=min(recipe.epochs, most))
        sides = self.start(task.text_weights.shape[1], ratios, generator)
        model = Adapted(sides, task.text_weights, task.scale)
        self.losses_ = train_on(model, task.source[rows.numpy()], labels, recipe, generator, key)
        self.selected_ = {"epochs": recipe.epochs, "lr": recipe.lr}
        return model

    def many(self, task: Task) -> bool:
        """Whether the task is as large as ImageNet."""
        return len(task.class_names) >= IMAGENET

    def recipe(self, task: Task, labels: Tensor) -> Recipe:
        """Give the settings of training, the `"auto"` ones found out."""
        epochs, size, lr = self.epochs, self.batch_size, self.lr
        if size == "auto":
            size = MANY["batch_size"] if self.many(task) else BATCH
        if epochs == "auto" and self.many(task):
            epochs = MANY["epochs"]
        recipe = Recipe(choose_epochs(epochs, labels), size)
        if lr == "auto":
            lr = AT_100 * (100 / task.scale) ** 2 * recipe.batch_size / BATCH
        return replace(recipe, lr=lr).change(self.training)

    def trials(self, task: Task, rows: Tensor, seen: Validation, short: bool) -> tuple[float, Adapted]:
        """Train at each of RATIOS, search the ratio to use each with; give the first best."""
        runs = []
        for ratio in RATIOS:
            model = self.train(task, rows, dict.fromkeys(SIDES["both"], ratio), short)
            runs.append((model.search(seen), ratio, model, self.losses_))
        _, chosen, kept, self.losses_ = max(runs, key=lambda run: run[0])
        return chosen, kept

    def learn(self, task: Task) -> dict[str, Tensor]:
        """Choose the ratios as asked, and train the adapters on the whole support set."""
        check_selection(self.selection, ["support", "fixed", "val", "oracle"])
        ratios, everything = self.checked_ratios(), torch.arange(len(task.labels))
        if self.learn_ratio and self.selection in ("val", "oracle"):
            raise unexpected("selection", self.selection, "'fixed' or 'support' with learn_ratio=True")
        selection = "fixed" if self.learn_ratio else self.selection
        if selection == "support" and smallest_class(task.labels.numpy()) < 2:
            selection = "fixed"
            self.notes_.append("One image of some class: the ratios were not searched.")
        if selection == "fixed":
            model, self.selection_ = self.train(task, everything, ratios, key=task.key), selection
        elif selection == "support":
            out = first_shots(task.labels)
            seen = Validation(task.source[out.numpy()].pooled(), task.labels[out])
            ratio, trial = self.trials(task, everything[~out], seen, True)
            model = self.train(task, everything, dict.fromkeys(SIDES["both"], ratio), key=task.key)
            for name, adapter in model.sides.items():
                adapter.fixed = trial.sides[name].fixed
            self.selected_["trained_at"] = ratio
        else:
            self.selected_["trained_at"], model = self.trials(task, everything, task.held_out, False)
        for name, adapter in model.sides.items():
            self.selected_[NAMES[name]] = round(float(adapter.ratio.detach()), 6)
        self.warn_if_dead(model, task)
        return model.learned()

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
    def warn_if_dead(self, model: Adapted, task: Task) -> None:
        """Say so where an adapter gives nothing but zeros: its last ReLU can die for good."""
        for name, adapter in model.sides.items():
            x = task.text_weights if name == "text" else task.source.sample(
                torch.arange(len(task.labels)), seeded(self.seed)
            )  # fmt: skip
            zeros = float((adapter.read(x) == 0).double().mean())
            self.selected_[f"{name}_zeros"] = round(zeros, 3)
            if zeros == 1:
                message = f"The {name} adapter died: it gives only zeros. Got lr={self.lr!r}: lower it."
                warnings.warn(message, stacklevel=2)
                self.notes_.append(message)

    def learned_shapes(self, classes: int, backbone: Backbone | None) -> Shapes:
        """Adapters of each side."""
        width = backbone.joint_width if backbone else "E"
        if not isinstance(self.side, str) or self.side not in SIDES:
            raise CheckpointError(f"Got side={self.side!r}, expected one of {list(SIDES)}.")
        return _shapes(SIDES[self.side], "H", width)

    @torch.no_grad()
    def build(self, task: Task, learned: dict[str, Tensor]) -> AdapterHead:
        """Adapt the class weights once and for all."""
        model = Adapted(adapters(learned), task.text_weights, task.scale)
        return AdapterHead(model.class_weights(), task.scale, learned)

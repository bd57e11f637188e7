"""The one training loop: cross-entropy, the published optimizers and schedules, the last step's weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handful.errors import TrainingError, check_integer, check_number, unexpected
from handful.progress import bar

LARGEST = 1e38
"""What float32 can still hold."""
IMAGENET = 1000
"""Classes from which on a task counts as ImageNet does, which is trained for fewer epochs."""
Batch = tuple[Tensor, Tensor]
"""Inputs `[B, ...]` and labels `[B]`."""


class Source(Protocol):
    """Where training inputs come from: cached views, or fresh crops."""

    def __len__(self) -> int:
        """Images."""
        ...

    def sample(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Give one view of each of some images, `[B, E]`."""
        ...


@dataclass(frozen=True)
class Recipe:
    """How to train: the settings of the CoOp family unless told otherwise (methods.md §2.2).

    Attributes
    ----------
    epochs, batch_size
        Passes over the support set, and images of a step.
    lr, momentum, weight_decay
        Of SGD; the last two are hidden defaults of the published code.
    warmup_lr
        Learning rate of a first, constant epoch that delays the cosine by one; None for no such epoch.
    adam_eps
        AdamW with this epsilon, in place of SGD.
    by_step
        The cosine falls at every step, and an epoch keeps its last, smaller batch; else the
        cosine falls with the epoch, and that batch is dropped (methods.md §0.3).
    """

    epochs: int
    batch_size: int = 32
    lr: float = 0.002
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_lr: float | None = 1e-5
    adam_eps: float | None = None
    by_step: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "epochs", check_integer("epochs", self.epochs, 1))
        object.__setattr__(self, "batch_size", check_integer("batch_size", self.batch_size, 1))
        object.__setattr__(self, "lr", check_number("lr", self.lr, 0, above=True))
        if self.lr > LARGEST:
            raise unexpected("lr", self.lr, f"a number up to {LARGEST:g}")

    def optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Give the optimizer; the loop sets its learning rate."""
        if self.adam_eps is not None:
            return torch.optim.AdamW(parameters, self.lr, eps=self.adam_eps, weight_decay=self.weight_decay)
        return torch.optim.SGD(parameters, self.lr, momentum=self.momentum, weight_decay=self.weight_decay)

    def learning_rate(self, epoch: float) -> float:
        """Give the learning rate at a time counted in epochs from 0 (methods.md §0.4).

        `lr (1 + cos(pi e / T)) / 2`; with a warm-up, `warmup_lr` first, and then the same one epoch
        late, so that the cosine never reaches 0.
        """
        late = 0 if self.warmup_lr is None else 1
        if late and epoch < 1:
            return float(self.warmup_lr or 0)
        return self.lr * (1 + math.cos(math.pi * (epoch - late) / self.epochs)) / 2


def tip_recipe(epochs: int, batch_size: int, lr: float) -> Recipe:
    """Give the Tip family's settings: AdamW, a cosine by steps, no warm-up (methods.md §5.3, §6.2)."""
    return Recipe(epochs, batch_size, lr, weight_decay=0.01, warmup_lr=None, adam_eps=1e-4, by_step=True)


def epochs_by_shots(labels: Tensor) -> int:
    """Give CoOp's epochs: 50 at 1 shot, 100 at 2 and 4, 200 at 8 and 16 (methods.md §2.2).

    A support set of unequal classes counts as its mean shots; 1,000 classes, as ImageNet has, get
    50 whatever the shots.
    """
    classes = max(len(labels.unique()), 1)
    shots = len(labels) / classes
    return 50 if shots < 1.5 or classes >= IMAGENET else 100 if shots < 6 else 200


def choose_epochs(epochs: int | Literal["auto"], labels: Tensor) -> int:
    """Give CoOp's epochs for `"auto"`, and anything else as it is, for the recipe to check."""
    if isinstance(epochs, str) and epochs == "auto":  # an array would compare element by element
        return epochs_by_shots(labels)
    return epochs


def seeded(seed: int) -> torch.Generator:
    """Give a generator for a seed."""
    if not -(2**63) <= check_integer("seed", seed) < 2**63:
        raise unexpected("seed", seed, "an integer of 64 bits")
    return torch.Generator().manual_seed(int(seed))


def shuffled(
    source: Source, labels: Tensor, size: int, generator: torch.Generator, keep_last: bool = False
) -> Iterator[Batch]:
    """Give one epoch: every image once, in batches; a last, smaller one is dropped if others came."""
    order = torch.randperm(len(source), generator=generator)
    for rows in order.split(size):
        if len(rows) == size or len(source) < size or keep_last:
            yield source.sample(rows, generator), labels[rows]


def descend(model: nn.Module, loss: Callable[[], Tensor], most: int, tolerance: float) -> list[float]:
    """Find the minimum of a smooth loss by L-BFGS, with all images at every step.

    Parameters
    ----------
    model
        Whose parameters are moved.
    loss
        Gives the loss where they are.
    most
        Steps at most.
    tolerance
        It ends when a step changes the loss by less.

    Returns
    -------
    losses
        At every evaluation.

    Raises
    ------
    TrainingError
        The loss is NaN or infinite.
    """
    losses: list[float] = []
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=most, tolerance_change=tolerance, history_size=10,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def evaluate() -> float:
        optimizer.zero_grad()
        now = loss()
        now.backward()
        losses.append(now.item())
        if not math.isfinite(losses[-1]):
            raise TrainingError(
                f"The loss became {losses[-1]} at evaluation {len(losses)}: check the features."
            )
        return losses[-1]

    with torch.enable_grad():
        optimizer.step(evaluate)
    return losses


def train_on(
    model: nn.Module, source: Source, labels: Tensor, recipe: Recipe, generator: torch.Generator
) -> list[float]:
    """Train on shuffled epochs of a support set; see `train`."""
    size = recipe.batch_size

    def epoch() -> Iterator[Batch]:
        return shuffled(source, labels, size, generator, recipe.by_step)

    return train(model, epoch, recipe, math.ceil(len(source) / size))


def train(
    model: nn.Module,
    epoch: Callable[[], Iterable[Batch]],
    recipe: Recipe,
    steps: int = 1,
    show: bool | None = None,
) -> list[float]:
    """Train what requires gradients in `model`, which gives logits; the last step is kept.

    Parameters
    ----------
    model
        Maps inputs `[B, ...]` to logits `[B, C]`.
    epoch
        Gives an epoch's batches. A generator goes on after the step that its batch was for.
    recipe
        The settings.
    steps
        Batches of an epoch, for a cosine by steps.
    show
        Whether to show a bar; None shows it on a terminal.

    Returns
    -------
    losses
        The loss of each step.

    Raises
    ------
    TrainingError
        A loss, or what the last step left, is NaN or infinite.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = recipe.optimizer(parameters)
    device, losses = parameters[0].device, list[float]()
    with bar("Training", recipe.epochs, show) as advance, torch.enable_grad():
        for number in range(recipe.epochs):
            first = len(losses)
            for inputs, labels in epoch():
                loss = F.cross_entropy(model(inputs.to(device)), labels.to(device))
                if not torch.isfinite(loss):
                    raise TrainingError(
                        f"The loss became {loss.item()} at step {len(losses) + 1}, in epoch {number + 1} of "
                        f"{recipe.epochs} (the step before: {losses[-1] if losses else 'none'}). Got "
                        f"lr={recipe.lr:g}, expected one at which it converges: lower it."
                    )
                done = (len(losses) - first) / steps if recipe.by_step else 0.0
                optimizer.param_groups[0]["lr"] = recipe.learning_rate(number + done)
                losses.append(loss.item())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            advance(1, note=f"loss {sum(losses[first:]) / (len(losses) - first):.3f}")
    with torch.no_grad():  # no loss has seen the last step
        learned = [*parameters, model(inputs.to(device))]
    if not all(bool(torch.isfinite(values).all()) for values in learned):
        raise TrainingError(
            f"What was learned became NaN or infinite (last loss: {losses[-1] if losses else 'none'}). Got "
            f"lr={recipe.lr:g}, expected one at which it converges: lower it."
        )
    return losses

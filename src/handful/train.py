"""The one training loop: cross-entropy, the published optimizers and schedules, the last step's weights."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handful.backbones.base import has_bf16
from handful.errors import TrainingError, check_integer, check_number, unexpected
from handful.progress import bar
from handful.resume import Shelf, Standing

LARGEST = 1e38
"""What float32 can still hold."""
IMAGENET = 1000
"""Classes from which on a task counts as ImageNet does, which is trained for fewer epochs."""
ADJUSTABLE = ("precision", "accumulate", "clip", "momentum", "weight_decay", "warmup_lr")
"""Settings of the loop that every trained method takes in its `training`."""
Batch = tuple[Tensor, Tensor]
"""Inputs `[B, ...]` and labels `[B]`."""


class Source(Protocol):
    """Where training inputs come from: cached views, or fresh crops."""

    def __len__(self) -> int:
        """Images."""
        ...

    def sample(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Give one view of each of some images, `[B, ...]`."""
        ...


class Losses(list[float]):
    """The loss of each step; `note` says where a training was interrupted, `stopped` if it still is."""

    note: str = ""
    stopped: bool = False


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
        Learning rate of a first, constant epoch that delays the cosine by one, and never above `lr`; None for
        no such epoch.
    adam_eps
        AdamW with this epsilon, in place of SGD.
    precision
        `"float32"`, or `"bfloat16"` for autocast in the forward pass; weights stay in float32.
    accumulate
        Pieces that a batch goes through in, whose gradients add up: the same step in less memory.
    clip
        Largest norm of the gradient; None for any.
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
    precision: Literal["float32", "bfloat16"] = "float32"
    accumulate: int = 1
    clip: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "epochs", check_integer("epochs", self.epochs, 1))
        object.__setattr__(self, "batch_size", check_integer("batch_size", self.batch_size, 1))
        object.__setattr__(self, "lr", check_number("lr", self.lr, 0, above=True))
        if self.lr > LARGEST:
            raise unexpected("lr", self.lr, f"a number up to {LARGEST:g}")
        object.__setattr__(self, "accumulate", check_integer("accumulate", self.accumulate, 1))
        for name in ("momentum", "weight_decay", "warmup_lr", "clip"):
            if getattr(self, name) is not None or name in ("momentum", "weight_decay"):
                above = name == "clip"
                object.__setattr__(self, name, check_number(name, getattr(self, name), 0, above=above))
        if self.momentum >= 1:
            raise unexpected("momentum", self.momentum, "a number from 0 to below 1")
        if not isinstance(self.precision, str) or self.precision not in ("float32", "bfloat16"):
            raise unexpected("precision", self.precision, "'float32' or 'bfloat16'")

    def change(self, training: Mapping[str, Any] | None) -> Recipe:
        """Give the recipe with some of ADJUSTABLE changed, as a method's `training` asks."""
        if training is None:
            return self
        if not isinstance(training, Mapping) or not set(training) <= set(ADJUSTABLE):
            raise unexpected("training", training, f"None, or a dict with some of {list(ADJUSTABLE)}")
        if self.adam_eps is not None and "momentum" in training:
            raise unexpected("training", dict(training), "no momentum for a method that is trained by AdamW")
        return replace(self, **training)

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
            return min(float(self.warmup_lr or 0), self.lr)
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
    model: nn.Module,
    source: Source,
    labels: Tensor,
    recipe: Recipe,
    generator: torch.Generator,
    key: str | None = None,
) -> Losses:
    """Train on shuffled epochs of a support set; see `train`."""
    size = recipe.batch_size

    def epoch() -> Iterator[Batch]:
        return shuffled(source, labels, size, generator, recipe.by_step)

    steps = len(source) / size
    steps = math.ceil(steps) if recipe.by_step else max(math.floor(steps), 1)
    return train(model, epoch, recipe, steps, generator=generator, key=key)


def train(
    model: nn.Module,
    epoch: Callable[[], Iterable[Batch]],
    recipe: Recipe,
    steps: int = 1,
    show: bool | None = None,
    *,
    generator: torch.Generator | None = None,
    key: str | None = None,
) -> Losses:
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
        Batches of an epoch, for a cosine by steps, and for the bar.
    show
        Whether to show a bar; None shows it on a terminal.
    generator
        That `epoch` draws from.
    key
        What makes this training that training (`Task.key`). With it an interrupt keeps the last whole
        epoch and ends the training there (`Losses.stopped`), and the same training goes on from it.
        Without, and before the first epoch's end, the interrupt goes up.

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
    optimizer, device, losses = recipe.optimizer(parameters), parameters[0].device, Losses()
    shelf = None if key is None else Shelf(key, recipe, [tuple(p.shape) for p in parameters])
    kept = shelf.read() if shelf else None
    if kept is not None:
        kept.put_back(optimizer, generator)
        losses.extend(kept.losses)
        losses.note = f"Training had been interrupted after epoch {kept.epochs}, and went on from there."
    autocast, last = _autocast(recipe, device), None
    try:
        with bar("Training", recipe.epochs * steps, show) as advance, torch.enable_grad():
            advance(len(losses))
            for number in range(kept.epochs if kept else 0, recipe.epochs):
                first = len(losses)
                for inputs, labels in epoch():
                    last = inputs.to(device)
                    pieces = list(_pieces(last, labels.to(device), recipe.accumulate))
                    optimizer.zero_grad()
                    total = 0.0
                    for x, y in pieces:
                        with autocast:
                            loss = F.cross_entropy(model(x).float(), y) * (len(y) / len(labels))
                        total += _finite(loss, losses, number, recipe)
                        loss.backward()
                    if recipe.clip is not None:
                        nn.utils.clip_grad_norm_(parameters, recipe.clip)
                    done = (len(losses) - first) / steps if recipe.by_step else 0.0
                    optimizer.param_groups[0]["lr"] = recipe.learning_rate(number + done)
                    optimizer.step()
                    losses.append(total)
                    advance(1, note=f"epoch {number + 1} of {recipe.epochs}, loss {total:.3f}")
                if shelf:
                    kept = Standing.take(number + 1, losses, optimizer, generator)
        _check_left(model, parameters, last, losses, recipe)
    except KeyboardInterrupt:
        if shelf is None or kept is None:
            raise
        kept.put_back(optimizer, generator)
        saved = shelf.write(kept)
        if kept.epochs == recipe.epochs:  # it was done: the same fit will find that at once
            raise
        return _stopped(kept, recipe, saved)
    if shelf:
        shelf.remove()
    return losses


def _autocast(recipe: Recipe, device: torch.device) -> AbstractContextManager[Any]:
    """Give the precision of the forward pass."""
    if recipe.precision == "float32":
        return nullcontext()
    if has_bf16(device):
        return torch.autocast(device.type, torch.bfloat16)
    message = f"This {device.type} has no bfloat16 instructions: precision 'bfloat16' became 'float32'."
    warnings.warn(message, stacklevel=4)
    return nullcontext()


def _pieces(inputs: Tensor, labels: Tensor, count: int) -> Iterator[Batch]:
    """Cut a batch into at most `count` pieces."""
    yield from zip(inputs.chunk(count), labels.chunk(count), strict=True)


def _stopped(kept: Standing, recipe: Recipe, saved: bool) -> Losses:
    """Give the losses of a training that was interrupted, and how to go on."""
    losses = Losses(kept.losses)
    on = "To go on from there, fit again with the same data and parameters." if saved else ""
    losses.stopped = True
    losses.note = (
        f"Training was interrupted after epoch {kept.epochs} of {recipe.epochs} (loss {losses[-1]:.3f}), and "
        f"what was learned until then is kept. {on}"
    ).rstrip()
    return losses


def _finite(loss: Tensor, losses: list[float], number: int, recipe: Recipe) -> float:
    """Give a loss as a number, or say when it left them."""
    if torch.isfinite(loss):
        return loss.item()
    raise TrainingError(
        f"The loss became {loss.item()} at step {len(losses) + 1}, in epoch {number + 1} of "
        f"{recipe.epochs} (the step before: {losses[-1] if losses else 'none'}). Got "
        f"lr={recipe.lr:g}, expected one at which it converges: lower it."
    )


@torch.no_grad()
def _check_left(
    model: nn.Module,
    parameters: list[nn.Parameter],
    inputs: Tensor | None,
    losses: list[float],
    recipe: Recipe,
) -> None:
    """Refuse what the last step left, which no loss has seen, if it is not finite."""
    left = [*parameters] if inputs is None else [*parameters, model(inputs)]
    if all(bool(torch.isfinite(values).all()) for values in left):
        return
    raise TrainingError(
        f"What was learned became NaN or infinite (last loss: {losses[-1] if losses else 'none'}). Got "
        f"lr={recipe.lr:g}, expected one at which it converges: lower it."
    )

"""The one training loop: any loss, the published optimizers and schedules, the last step's weights."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handful.backbones.base import has_bf16
from handful.balance import balanced_order
from handful.errors import TrainingError
from handful.progress import bar
from handful.resume import Snapshot, SnapshotStore
from handful.schedule import Schedule

Batch = Sequence[Tensor]
"""Inputs `[B, ...]`, labels `[B]`, and whatever else a loss reads of each image: `shuffled` gives the rows
of the support set `[B]`."""
Loss = Callable[[nn.Module, Batch], "Tensor | tuple[Tensor, Tensor]"]
"""A mean over the batch, or two such losses for `Merge`."""
Gradients = tuple[Tensor, ...]
"""One for each trained parameter."""
Merge = Callable[[Gradients, Gradients], Gradients]
"""Makes the gradient of a step of those of two losses, as ProGrad does."""


class Source(Protocol):
    """Where training inputs come from: cached views, or fresh crops."""

    def __len__(self) -> int:
        """Images."""
        ...

    def sample(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Give one view of each of some images, `[B, ...]`."""
        ...


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of the model's logits `[B, C]`, in float32."""
    return F.cross_entropy(model(batch[0]).float(), batch[1])


def shuffled(
    source: Source,
    labels: Tensor,
    size: int,
    generator: torch.Generator,
    keep_last: bool = False,
    balance: bool = False,
) -> Iterator[Batch]:
    """Give one epoch: every image once, in batches; a last, smaller one is dropped if others came.

    With `balance`, as many images of each class in its place: the expected gradient is that of images which
    weigh `N / (C n)`, for any loss. Weights in the loss would give the same on average, but by steps that are
    many times as large wherever a batch holds one of a class's few images.
    """
    count = len(source)
    order = balanced_order(labels, generator) if balance else torch.randperm(count, generator=generator)
    for rows in order.split(size):
        if len(rows) == size or count < size or keep_last:
            yield source.sample(rows, generator), labels[rows], rows


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


@dataclass(frozen=True)
class Run:
    """How a training went: the (first) loss of each step, notes, and, if it was interrupted, how to go on."""

    losses: list[float]
    notes: tuple[str, ...] = ()
    interrupted: str = ""


def train_on(
    model: nn.Module,
    source: Source,
    labels: Tensor,
    schedule: Schedule,
    generator: torch.Generator,
    *,
    balance: bool = False,
    **settings: Any,
) -> Run:
    """Train on shuffled epochs of a support set, balanced ones if asked; see `train` for the settings."""

    def epoch() -> Iterator[Batch]:
        return shuffled(source, labels, schedule.batch_size, generator, schedule.by_step, balance)

    return train(model, epoch, schedule, schedule.steps(len(source)), generator=generator, **settings)


def train(
    model: nn.Module,
    epoch: Callable[[], Iterable[Batch]],
    schedule: Schedule,
    steps: int = 1,
    *,
    loss: Loss = cross_entropy,
    merge: Merge | None = None,
    after_epoch: Callable[[int], object] | None = None,
    generator: torch.Generator | None = None,
    key: str | None = None,
    show: bool | None = None,
) -> Run:
    """Train what requires gradients in `model`; the last step is kept.

    Parameters
    ----------
    model
        What the loss is a function of; for cross-entropy it maps inputs `[B, ...]` to logits `[B, C]`.
    epoch, steps
        Gives an epoch's batches, and how many these are. A generator goes on after the step of its batch.
    schedule
        The settings.
    loss
        A function of the model and a batch: a mean over the batch's images, or two for `merge`.
    merge
        Makes the gradient of a step of the gradients of two losses; without it their sum counts.
    after_epoch
        Is called with the number of epochs done. What it keeps from epoch to epoch, as a mean of weights,
        belongs into buffers of the model, which an interrupted training gets back.
    generator
        That `epoch` draws from.
    key
        The identity of this training (`Task.key`). With it an interrupt keeps the last whole
        epoch and ends the training there (`Run.interrupted`), and the same training resumes from it.
        Without, and before the first epoch's end, the interrupt goes up.
    show
        Whether to show a bar; None shows it on a terminal.

    Raises
    ------
    TrainingError
        A loss, or what the last step left, is NaN or infinite.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, device = schedule.build_optimizer(parameters), parameters[0].device
    losses, notes = list[float](), tuple[str, ...]()
    store = None if key is None else SnapshotStore(key, schedule, [tuple(p.shape) for p in parameters])
    kept = store.read() if store else None
    if kept is not None:
        kept.put_back(model, optimizer, generator)
        losses.extend(kept.losses)
        notes = (f"Training had been interrupted after epoch {kept.epochs}, and went on from there.",)
    step = _Step(model, parameters, optimizer, schedule, loss, merge, _autocast(schedule, device))
    try:
        with bar("Training", schedule.epochs * steps, show) as advance, torch.enable_grad():
            advance(len(losses))
            for number in range(kept.epochs if kept else 0, schedule.epochs):
                first = len(losses)
                for batch in epoch():
                    done = (len(losses) - first) / steps if schedule.by_step else 0.0
                    losses.append(step.take([part.to(device) for part in batch], number + done, losses))
                    advance(1, note=f"epoch {number + 1} of {schedule.epochs}, loss {losses[-1]:.3f}")
                if after_epoch is not None:
                    with torch.no_grad():
                        after_epoch(number + 1)
                if store:
                    kept = Snapshot.take(number + 1, losses, model, optimizer, generator)
        step.check_left(losses)
    except KeyboardInterrupt:
        if store is None or kept is None:
            raise
        kept.put_back(model, optimizer, generator)
        saved = store.write(kept)
        if kept.epochs == schedule.epochs:  # it was done: the same fit will find that at once
            raise
        return _interrupted(kept, schedule, saved)
    if store:
        store.remove()
    return Run(losses, notes)


@dataclass
class _Step:
    """One step of a training: forward, backward, and the optimizer's."""

    model: nn.Module
    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    loss: Loss
    merge: Merge | None
    autocast: AbstractContextManager[Any]
    last: Tensor | None = None
    """Inputs of the last step."""

    def take(self, batch: Batch, time: float, losses: list[float]) -> float:
        """Move the parameters by one batch, at a time counted in epochs; give the (first) loss."""
        self.last = batch[0]
        self.optimizer.zero_grad()
        total, gradients = 0.0, list[Gradients]()
        for piece in zip(*(part.chunk(self.schedule.accumulate) for part in batch), strict=True):
            share = len(piece[0]) / len(batch[0])
            with self.autocast:
                found = self.loss(self.model, piece)
            parts = [part * share for part in (found if isinstance(found, tuple) else (found,))]
            for part in parts:
                self._check_finite(part, time, losses)
            total += parts[0].item()
            if self.merge is None:
                sum(parts[1:], parts[0]).backward()
            else:
                pair = [
                    torch.autograd.grad(
                        part, self.parameters, retain_graph=part is not parts[-1], materialize_grads=True
                    )
                    for part in parts
                ]
                gradients = [_add(*both) for both in zip(gradients, pair, strict=True)] if gradients else pair
        if self.merge is not None:
            for parameter, gradient in zip(self.parameters, self.merge(*gradients), strict=True):
                parameter.grad = gradient
        if self.schedule.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.schedule.clip)
        self.optimizer.param_groups[0]["lr"] = self.schedule.learning_rate(time)
        self.optimizer.step()
        return total

    def _check_finite(self, loss: Tensor, time: float, losses: list[float]) -> None:
        if torch.isfinite(loss):
            return
        raise TrainingError(
            f"The loss became {loss.item()} at step {len(losses) + 1}, in epoch {int(time) + 1} of "
            f"{self.schedule.epochs} (the step before: {losses[-1] if losses else 'none'}). Got "
            f"lr={self.schedule.lr:g}, expected one at which it converges: lower it."
        )

    @torch.no_grad()
    def check_left(self, losses: list[float]) -> None:
        """Refuse what the last step left, which no loss has seen, if it is not finite."""
        left = [*self.parameters] if self.last is None else [*self.parameters, self.model(self.last)]
        if all(bool(torch.isfinite(values).all()) for values in left):
            return
        raise TrainingError(
            f"What was learned became NaN or infinite (last loss: {losses[-1] if losses else 'none'}). Got "
            f"lr={self.schedule.lr:g}, expected one at which it converges: lower it."
        )


def _add(one: Gradients, other: Gradients) -> Gradients:
    return tuple(a + b for a, b in zip(one, other, strict=True))


def _autocast(schedule: Schedule, device: torch.device) -> AbstractContextManager[Any]:
    """Give the precision of the forward pass."""
    if schedule.precision == "float32":
        return nullcontext()
    if has_bf16(device):
        return torch.autocast(device.type, torch.bfloat16)
    message = f"This {device.type} has no bfloat16 instructions: precision 'bfloat16' became 'float32'."
    warnings.warn(message, stacklevel=4)
    return nullcontext()


def _interrupted(kept: Snapshot, schedule: Schedule, saved: bool) -> Run:
    """Give what is known of a training that was interrupted, and how to go on."""
    on = "To go on from there, fit again with the same data and parameters." if saved else ""
    note = (
        f"Training was interrupted after epoch {kept.epochs} of {schedule.epochs} (loss "
        f"{kept.losses[-1]:.3f}), and what was learned until then is kept. {on}"
    ).rstrip()
    return Run(list(kept.losses), (note,), note)

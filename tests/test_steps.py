"""A step of training is the published code's, by hand: optimizers, losses, and what merges two of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import handful
from handful.schedule import Schedule, seeded, tip_schedule
from handful.train import Batch, Gradients, train, train_on

X = np.array([[1.0, 2.0], [-3.0, 0.5], [0.25, -1.0], [2.0, 2.0]])
Y = np.array([3.0, -1.0, 0.5, 2.0])
START = np.array([5.0, -4.0])
Numbers = NDArray[np.float64]


class Line(nn.Module):
    """`x @ w` in float64, so that a step can be checked to twelve digits."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.from_numpy(START.copy()))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w


def squares(model: nn.Module, batch: Batch) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def gradient(w: Numbers) -> Numbers:
    """Of `squares`, by hand."""
    return 2 * X.T @ (X @ w - Y) / len(X)


def trained(schedule: Schedule, loss: Callable = squares, **settings: object) -> Numbers:
    """What one batch of all rows in each epoch makes of START."""
    model, batch = Line(), (torch.from_numpy(X), torch.from_numpy(Y), torch.arange(4))
    train(model, lambda: [batch], schedule, loss=loss, **settings)
    return model.w.detach().numpy()


def close(found: Numbers, expected: Numbers) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-12)


# -- optimizers --------------------------------------------------------------------------------------


def test_sgd_is_that_of_the_coop_family():
    """Momentum 0.9, weight decay 5e-4, and an epoch at 1e-5 before the cosine (Zhou et al. 2022a, code)."""
    w, velocity = START, np.zeros(2)
    for lr in (1e-5, 0.02, 0.02 * (1 + math.cos(math.pi / 3)) / 2):
        velocity = 0.9 * velocity + gradient(w) + 5e-4 * w
        w = w - lr * velocity
    close(trained(Schedule(epochs=3, lr=0.02)), w)


@pytest.mark.parametrize("name", ["coop", "cocoop", "text-tuning", "fine-tuning"])
def test_methods_of_the_coop_family_train_so(
    name: str, tiny: handful.Backbone, two_classes: Path, monkeypatch
):
    asked: list[Schedule] = []
    build = Schedule.build_optimizer
    monkeypatch.setattr(
        Schedule, "build_optimizer", lambda self, given: (asked.append(self), build(self, given))[1]
    )
    handful.METHODS[name](tiny, epochs=1, views=0).fit(handful.ImageSet.from_folder(two_classes))
    (own,) = asked
    assert (own.optimizer, own.momentum, own.weight_decay, own.warmup_lr) == ("sgd", 0.9, 5e-4, 1e-5)


def test_adamw_is_that_of_the_tip_family():
    """Epsilon 1e-4, weight decay 0.01 beside the gradient, a cosine by steps (Zhang et al. 2022, code)."""
    w, first, second = START, np.zeros(2), np.zeros(2)
    flat = np.array([1e-4, 3e-4])  # gradients as small as epsilon, so that it counts
    for step, lr in enumerate((0.1, 0.1 * (1 + math.cos(math.pi / 2)) / 2), 1):
        g = flat * gradient(w)
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        w = w - lr * 0.01 * w
        w = w - lr * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-4)

    def loss(model: Line, batch: Batch) -> Tensor:
        held = model.w.detach()
        return (torch.from_numpy(flat * gradient(held.numpy())) * model.w).sum()

    close(trained(tip_schedule(2, 4, 0.1), loss), w)


def test_adam_is_its_formula():
    """With the weight decay in the gradient (Kingma and Ba 2015, algorithm 1)."""
    w, first, second = START, np.zeros(2), np.zeros(2)
    for step in (1, 2):
        g = gradient(w) + 5e-4 * w
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        lr = 0.1 * (1 + math.cos(math.pi * (step - 1) / 2)) / 2
        w = w - lr * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    close(trained(Schedule(2, 4, 0.1, optimizer="adam", warmup_lr=None)), w)


# -- any loss ----------------------------------------------------------------------------------------


def test_a_loss_is_any_function_of_model_and_batch():
    """Here one that knows each image by its row: the distance to a teacher's logits."""
    features = handful.Features.from_array(torch.randn(10, 3, generator=seeded(0)))
    teacher, seen = torch.randn(10, 2, generator=seeded(1)), list[int]()

    def distance(model: nn.Module, batch: Batch) -> Tensor:
        x, labels, rows = batch
        seen.extend(rows.tolist())
        assert torch.equal(labels, rows % 2)
        assert torch.equal(x, features.values[rows, 0])
        return (model(x) - teacher[rows]).square().mean()

    model = nn.Linear(3, 2)
    schedule = Schedule(200, 10, 0.1, warmup_lr=None, weight_decay=0)
    found = train_on(model, features, torch.arange(10) % 2, schedule, seeded(2), loss=distance)
    assert sorted(seen[:10]) == list(range(10))
    assert len(found.losses) == 200
    x = torch.cat([features.values[:, 0], torch.ones(10, 1)], dim=1)
    torch.testing.assert_close(
        model(features.values[:, 0]).detach(), x @ torch.linalg.lstsq(x, teacher).solution, atol=1e-3, rtol=0
    )


# -- two losses --------------------------------------------------------------------------------------


AWAY = np.array([6.0, 1.0, -2.0, 4.0])
"""How far from what there is at START the second loss wants each row."""


def other_gradient(w: Numbers) -> Numbers:
    """Of the second of `both`, by hand."""
    return 2 * X.T @ (X @ w - (X @ START + AWAY)) / len(X)


def both(model: Line, batch: Batch) -> tuple[Tensor, Tensor]:
    """Two losses: `squares`, and the distance to other targets."""
    x, y, rows = batch
    targets = torch.from_numpy(X @ START + AWAY)[rows]
    return squares(model, (x, y)), (model(x) - targets).square().mean()


def progradient(one: Gradients, other: Gradients) -> Gradients:
    """ProGrad's rule (Zhu et al. 2023, equation 4): what of the first goes against the second is left out."""
    a, b = (torch.cat([part.flatten() for part in gradients]) for gradients in (one, other))
    if a @ b >= 0:
        return one
    share = (a @ b) / (b @ b)
    return tuple(g - share * h for g, h in zip(one, other, strict=True))


PLAIN = Schedule(1, 4, 0.1, warmup_lr=None, momentum=0, weight_decay=0)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_without_a_merge_two_losses_add_up(accumulate: int):
    found = trained(PLAIN.change({"accumulate": accumulate}), both)
    close(found, START - 0.1 * (gradient(START) + other_gradient(START)))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_merged_gradients_are_prograds(accumulate: int):
    """Two steps, the second with a conflict that only one half of the batch sees."""
    w, conflicts = START, []
    for lr in (0.1, 0.05):
        g, h = gradient(w), other_gradient(w)
        conflicts.append(bool(g @ h < 0))
        w = w - lr * (g - (g @ h) / (h @ h) * h if g @ h < 0 else g)
    assert conflicts == [False, True]
    schedule = Schedule(2, 4, 0.1, warmup_lr=None, momentum=0, weight_decay=0, accumulate=accumulate)
    close(trained(schedule, both, merge=progradient), w)


def test_the_first_of_two_losses_is_recorded():
    model, batch = Line(), (torch.from_numpy(X), torch.from_numpy(Y), torch.arange(4))
    run = train(model, lambda: [batch], PLAIN, loss=both, merge=progradient)
    assert run.losses == pytest.approx([((X @ START - Y) ** 2).mean()], rel=1e-12)


def test_a_merged_loss_need_not_depend_on_every_parameter():
    model, batch = nn.Linear(2, 1), (torch.ones(4, 2), torch.zeros(4))
    start = model.bias.detach().clone()

    def losses(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        return model.weight.square().sum(), model(batch[0]).square().mean()

    train(model, lambda: [batch], PLAIN, loss=losses, merge=lambda one, other: one)
    torch.testing.assert_close(model.bias.detach(), start)


def test_a_merged_gradient_is_clipped_as_any_other():
    found = trained(PLAIN.change({"clip": 1e-3}), both, merge=lambda one, other: other)
    pull = other_gradient(START)
    np.testing.assert_allclose(START - found, 0.1 * 1e-3 * pull / np.linalg.norm(pull), rtol=1e-5)


# -- after each epoch --------------------------------------------------------------------------------


class Averaged(nn.Linear):
    """Keeps the mean of its weights after each epoch."""

    def __init__(self) -> None:
        super().__init__(5, 3)
        nn.init.zeros_(self.weight), nn.init.zeros_(self.bias)
        self.register_buffer("mean", torch.zeros(3, 5))
        self.numbers: list[int] = []

    def average(self, epoch: int) -> None:
        self.numbers.append(epoch)
        assert not torch.is_grad_enabled()
        self.mean += (self.weight - self.mean) / epoch


@pytest.mark.parametrize("stop", [13, 26])
def test_what_is_kept_after_an_epoch_survives_an_interrupt(
    stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path))
    source = handful.Features.from_array(torch.randn(40, 5, generator=seeded(1)))
    labels, schedule, steps = (
        torch.arange(40) % 3,
        Schedule(epochs=6, batch_size=8, lr=0.1),
        iter(range(1000)),
    )

    def go(model: Averaged, until: int | None = None) -> handful.extend.Run:
        def loss(model: nn.Module, batch: Batch) -> Tensor:
            if until is not None and next(steps) == until:
                raise KeyboardInterrupt
            return F.cross_entropy(model(batch[0]), batch[1])

        return train_on(
            model, source, labels, schedule, seeded(0), loss=loss, after_epoch=model.average, key="this"
        )

    whole = Averaged()
    go(whole)
    assert whole.numbers == [1, 2, 3, 4, 5, 6]
    assert not torch.equal(whole.mean, whole.weight)
    done = stop // 5
    broken = Averaged()
    assert go(broken, until=stop).interrupted
    assert broken.numbers == list(range(1, done + 1))
    resumed = Averaged()
    assert not go(resumed).interrupted
    assert resumed.numbers == list(range(done + 1, 7))
    assert torch.equal(resumed.mean, whole.mean)
    assert torch.equal(resumed.weight, whole.weight)

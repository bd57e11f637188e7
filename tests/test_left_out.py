"""What a closed form says of images that it had not seen: exactly what a fit without them says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from handful.left_out.gda import Moments, Shrunk, left_out
from handful.left_out.ridge import KernelSystem, LinearSystem, inverse_with, inverse_without, solve
from handful.methods.features.gda.gaussians import dimensionless, published
from handful.search import best_blend
from handful.selection import shot_folds

CLASSES, WIDTH = 4, 12


def problem(
    views: int = 1, counts: tuple[int, ...] = (4, 4, 4, 4), width: int = WIDTH
) -> tuple[Tensor, Tensor]:
    """Give unit vectors `[N, V, E]` of some classes, and labels."""
    generator = torch.Generator().manual_seed(len(counts) + views)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    centres = torch.randn(len(counts), 1, width, generator=generator)
    values = centres[labels] + 0.7 * torch.randn(len(labels), views, width, generator=generator)
    return F.normalize(values, dim=-1).double(), labels


def kernel(x: Tensor, y: Tensor) -> Tensor:
    return torch.exp(-2 * (1 - x @ y.T))


def fold_sets(labels: Tensor) -> dict[str, Tensor]:
    return {
        "single": torch.arange(len(labels)),
        "shots": shot_folds(labels),
        "pairs": shot_folds(labels, 2),
        "some": torch.where(labels == 0, -1, labels % 2),
    }


# -- ridge ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("folds_of", ["single", "shots", "pairs", "some"])
@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_ridge_leaves_out_as_if_fitted_again(folds_of: str, views: int, weighted: bool):
    values, labels = problem(views)
    x, marks = values.flatten(0, 1), labels.repeat_interleave(views)
    folds = fold_sets(labels)[folds_of].repeat_interleave(views)
    prior = x @ torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(3)).double().T
    targets = F.one_hot(marks, CLASSES) - prior
    weights = torch.rand(len(x), generator=torch.Generator().manual_seed(4)).double() + 0.5
    weights = weights if weighted else torch.ones(len(x)).double()
    lams = [0.02, 0.7]
    for system, gram in (
        (KernelSystem.of(kernel(x, x), weights), kernel), (LinearSystem(x, weights), lambda a, b: a @ b.T)
    ):  # fmt: skip
        for lam, found in zip(lams, system.left_out(targets, folds, lams), strict=True):
            expected = torch.full_like(targets, torch.nan)
            for fold in folds[folds >= 0].unique():
                out = folds == fold
                ridge = gram(x[~out], x[~out]) + torch.diag(lam / weights[~out])
                expected[out] = gram(x[out], x[~out]) @ torch.linalg.solve(ridge, targets[~out])
            torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-8, atol=1e-10)
            whole = torch.linalg.solve(gram(x, x) + torch.diag(lam / weights), targets)
            torch.testing.assert_close(system.coefficients(targets, lam), whole, rtol=1e-7, atol=1e-8)
            direct = solve(gram(x, x).clone(), weights, targets, lam)
            torch.testing.assert_close(direct, whole, rtol=1e-7, atol=1e-8)


def test_primal_and_dual_are_one():
    values, labels = problem(counts=(9, 2, 5))
    x, targets, weights = values[:, 0], F.one_hot(labels).double(), torch.rand(len(labels)).double() + 0.1
    line = LinearSystem(x, weights)
    torch.testing.assert_close(line.primal(targets, 0.3), x.T @ line.coefficients(targets, 0.3))


def test_rows_come_and_go_without_solving_again():
    values, labels = problem()
    x, lam = values[:, 0], 0.1
    whole = torch.linalg.inv(kernel(x, x) + lam * torch.eye(len(x)))
    left = (labels != 2).nonzero()[:, 0]
    rest = torch.linalg.inv(kernel(x[left], x[left]) + lam * torch.eye(len(left)))
    gone = (labels == 2).nonzero()[:, 0]
    torch.testing.assert_close(inverse_without(whole, gone), rest)
    again = inverse_with(
        rest, kernel(x[left], x[gone]), kernel(x[gone], x[gone]) + lam * torch.eye(len(gone))
    )
    order = torch.cat([left, gone])
    torch.testing.assert_close(again, whole[order][:, order])


# -- GDA ------------------------------------------------------------------------------------------


def by_formula(values: Tensor, labels: Tensor, queries: Tensor, classes: int, rule: object) -> Tensor:
    """Fit on vectors with NumPy's loops, and give discriminants."""
    x, marks = values.flatten(0, 1).numpy(), labels.repeat_interleave(values.shape[1]).numpy()
    present = np.unique(marks)
    means = np.zeros((classes, x.shape[1]))
    scatter = np.zeros((x.shape[1],) * 2)
    for row in present:
        own = x[marks == row]
        means[row] = own.mean(0)
        scatter += (own - own.mean(0)).T @ (own - own.mean(0))
    n, images, trace, width = len(x), len(labels), np.trace(scatter), x.shape[1]
    if rule is published:
        precision = width * np.linalg.pinv(scatter + trace / (n - 1) * np.eye(width), rcond=1e-10)
    elif trace < 1e-8:
        precision = np.eye(width)
    else:
        shrinkage, variance = width / (images - 1), trace / n / width
        precision = (1 + shrinkage) * np.linalg.inv(scatter / n / variance + shrinkage * np.eye(width))
    weight = means @ precision
    bias = -(weight * means).sum(1) / 2
    absent = np.setdiff1d(np.arange(classes), present)
    weight[absent], bias[absent] = weight[present].mean(0), bias[present].mean()
    return torch.from_numpy(queries.numpy() @ weight.T + bias)


@pytest.mark.parametrize("folds_of", ["single", "shots", "pairs", "some"])
@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("counts", [(4, 4, 4, 4), (2, 2, 2, 2), (7, 2, 3, 1)])
@pytest.mark.parametrize("rule", [dimensionless, published])
def test_gda_leaves_out_as_if_fitted_again(folds_of: str, views: int, counts: tuple[int, ...], rule: object):
    values, labels = problem(views, counts)
    folds = fold_sets(labels)[folds_of]
    queries = F.normalize(values.mean(1), dim=-1)
    found = left_out(values, labels, queries, 5, folds, rule)  # a class without images too
    expected = torch.full_like(found, torch.nan)
    for fold in folds[folds >= 0].unique():
        out = folds == fold
        expected[out] = by_formula(values[~out], labels[~out], queries[out], 5, rule)
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-7, atol=1e-8)


def test_more_rows_leave_than_there_are_dimensions():
    values, labels = problem(4, (5, 5, 5, 5), width=6)
    folds, queries = shot_folds(labels, 2), values[:, 0]
    found = left_out(values, labels, queries, 4, folds, dimensionless)
    out = folds == 1
    expected = by_formula(values[~out], labels[~out], queries[out], 4, dimensionless)
    torch.testing.assert_close(found[out], expected, rtol=1e-7, atol=1e-8)


def test_moments_come_and_go():
    values, labels = problem(2, (5, 3, 1, 4))
    rows = torch.tensor([0, 3, 4, 5, 9])
    rest = torch.ones(len(labels), dtype=torch.bool).index_fill(0, rows, False)
    whole = Moments.of(values, labels, 4)
    for found, expected in (
        (whole.without_images(values[rows], labels[rows]), Moments.of(values[rest], labels[rest], 4)),
        (Moments.of(values[rest], labels[rest], 4).with_images(values[rows], labels[rows]), whole),
        (whole.without_images(values, labels), Moments.of(values[:0], labels[:0], 4)),
    ):
        for name in ("counts", "images", "sums", "scatter"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-9)
    assert Moments.of(values[:1, :1], labels[:1], 4).trace == 0
    assert published(Moments.of(values[:1, :1], labels[:1], 4)) == Shrunk(0.0, 1.0)


# -- the blend ------------------------------------------------------------------------------------


def loss_at(base: Tensor, extra: Tensor, labels: Tensor, weights: Tensor, ratio: float) -> float:
    """The least mean cross-entropy over a grid of temperatures."""
    blend, share = base + ratio * extra, weights / weights.sum()
    return min(
        float(share @ F.cross_entropy(u * blend, labels, reduction="none"))
        for u in torch.logspace(-2.5, 2.5, 400).tolist()
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [1.0, 300.0])
def test_a_blend_has_the_least_loss_at_the_best_temperature(seed: int, size: float):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (60,), generator=generator)
    truth = F.one_hot(labels, 4).double()
    base, extra = (truth * pull + torch.randn(60, 4, generator=generator) for pull in (0.8, 1.2))
    weights = torch.rand(60, generator=generator).double() + 0.1
    ratio, loss = best_blend(size * base, extra, labels, weights)
    grid = [loss_at(base, extra, labels, weights, value) for value in torch.linspace(0, 4, 60).tolist()]
    assert loss <= min(grid) + 2e-3
    assert loss_at(base, extra, labels, weights, ratio / size) <= min(grid) + 2e-3


def test_a_blend_of_nothing_is_zero_and_one_of_all_that_is_right_is_finite():
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    right = F.one_hot(labels).double()
    assert best_blend(right, -right, labels)[0] == 0
    assert best_blend(right, torch.zeros(6, 3), labels)[0] == 0
    ratio, loss = best_blend(torch.zeros(6, 3), right, labels)
    assert np.isfinite(ratio) and ratio > 0 and loss < 0.05


def test_folds_are_shots_and_none_holds_a_class_whole():
    labels = torch.tensor([0] * 40 + [1] * 3 + [2])
    folds = shot_folds(labels)
    assert folds[-1] == -1 and folds.max() == 15 and folds[40:43].tolist() == [0, 1, 2]
    for fold in range(16):
        assert torch.bincount(labels[folds != fold], minlength=3).min() > 0

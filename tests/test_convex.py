"""Minima of the linear probe and of the linear adapter, against autograd in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from handful.convex.adapter import adapt, span_of
from handful.convex.basis import principal
from handful.convex.probe import probe
from handful.errors import TrainingError


def task(images: int = 40, width: int = 12, classes: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unit features, labels, unit text and image weights."""
    draw = torch.Generator().manual_seed(3)
    text = F.normalize(torch.randn(classes, width, generator=draw).double(), dim=-1)
    labels = torch.arange(images) % classes
    x = F.normalize(text[labels] + torch.randn(images, width, generator=draw).double(), dim=-1)
    weights = torch.rand(images, generator=draw).double() + 0.5
    return x, labels, text, weights / weights.mean()


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    each = F.cross_entropy(logits, labels, reduction="none")
    return (each if weights is None else weights * each).mean()


@pytest.mark.parametrize("images", [7, 40])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_probe_is_where_the_gradient_is_zero(images: int, weighted: bool):
    x, labels, text, weights = task(images)
    anchors, given = torch.linspace(0.1, 0.5, len(text)).double(), weights if weighted else None
    found, losses = probe(x, labels, text, 15.0, anchors, given, tolerance=1e-9)
    w = found.clone().requires_grad_()
    loss = cross_entropy(15 * x @ w.T, labels, given)
    loss = loss + (anchors * (w - text).square().sum(1)).mean()
    (gradient,) = torch.autograd.grad(loss, w)
    assert gradient.norm() < 1e-4
    assert abs(loss.item() - losses[-1]) < 1e-5
    again, more = probe(x, labels, text, 15.0, anchors, given, tolerance=1e-9, start=found)
    assert len(more) < len(losses)
    assert torch.allclose(again, found, atol=1e-3)


@pytest.mark.parametrize("images", [7, 40])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_adapter_is_where_the_gradient_is_zero(images: int, weighted: bool):
    x, labels, text, weights = task(images)
    given = weights if weighted else None
    found = adapt(x, labels, text, 15.0, 30.0, given, steps=400, tolerance=1e-9)
    m = found.clone().requires_grad_()
    logits = 15 * F.normalize(x + x @ m, dim=-1) @ text.T
    loss = cross_entropy(logits, labels, given) + 30 * (15 / 100) ** 2 * m.square().sum()
    (gradient,) = torch.autograd.grad(loss, m)
    assert (gradient @ span_of(text)).norm() < 1e-4
    again = adapt(x, labels, text, 15.0, 30.0, given, steps=400, tolerance=1e-9, start=found)
    assert torch.allclose(again, found, atol=1e-3)


def test_a_strong_penalty_moves_nothing():
    x, labels, text, _ = task()
    assert torch.allclose(probe(x, labels, text, 15.0, torch.full((5,), 1e8).double())[0], text, atol=1e-5)
    assert adapt(x, labels, text, 15.0, 1e10).abs().max() < 1e-6


def test_without_a_penalty_the_probe_ends_after_its_steps():
    x, labels, text, _ = task(8)
    found, losses = probe(x, labels, text, 100.0, torch.zeros(5).double(), most=30)
    assert len(losses) <= 30
    assert losses[-1] < 1e-3
    assert torch.isfinite(found).all()


def test_features_that_are_not_finite_are_refused():
    x, labels, text, _ = task()
    with pytest.raises(TrainingError, match="check the features"):
        probe(x * float("nan"), labels, text, 15.0, torch.ones(5).double())


def test_principal_directions_span_the_features():
    x = task(6)[0]
    basis = principal(torch.cat([x, x]))
    assert basis.shape == (12, 6)
    assert torch.allclose(basis.T @ basis, torch.eye(6).double(), atol=1e-5)
    assert torch.allclose(x @ basis @ basis.T, x, atol=1e-5)

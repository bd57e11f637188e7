"""A small feature-space task, and what tests of methods on features do with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import handful
from handful.refiner import Refiner
from handful.schedule import seeded

NAMES = ["cat", "dog", "red panda"]


def toy(shots: int = 4, width: int = 16, seed: int = 0, noise: float = 0.8):
    """Features around one centre for each of three classes, and text weights near the centres."""
    centres = torch.randn(3, width, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed + 1)
    labels = torch.arange(3).repeat_interleave(shots)
    features = centres[labels] + noise * torch.randn(len(labels), width, generator=generator)
    text = F.normalize(centres + 1.5 * torch.randn(3, width, generator=generator), dim=-1)
    return features, labels.numpy(), text


def fit(clf: handful.FewShotClassifier, shots: int = 4, **more: object) -> handful.FewShotClassifier:
    features, labels, text = toy(shots)
    return clf.fit(features, labels, class_names=NAMES, class_weights=text, **more)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@pytest.fixture
def refiner() -> Refiner:
    return Refiner(16).reset(seeded(0)).requires_grad_(False)


def same(left: np.ndarray, right: np.ndarray) -> None:
    np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-4)

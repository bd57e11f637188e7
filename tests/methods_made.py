"""A toy task and a trained method, for tests of methods."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import handful

NAMES = ["cat", "dog", "red panda"]

ENOUGH = {
    "coop": {"init": "a photo of the number", "lr": 0.02, "epochs": 30, "views": 0},
    "cocoop": {"init": "a photo of the number", "epochs": 2, "views": 0},
    "clip-adapter": {"epochs": 30, "views": 0},
    "tip-adapter-f": {"views": 0},
    "fine-tuning": {"epochs": 3, "views": 0},
    "taskres": {"views": 0},
    "cross-modal-probe": {"iterations": 100},
}
"""What a method of the text tower needs to get somewhere with forty images in seconds."""


def toy(shots: int = 4, width: int = 16, seed: int = 0):
    """Features around one centre for each of three classes, and text weights near the centres."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(3, width, generator=generator)
    labels = torch.arange(3).repeat_interleave(shots)
    features = centres[labels] + 0.8 * torch.randn(len(labels), width, generator=generator)
    text = F.normalize(centres + 1.5 * torch.randn(3, width, generator=generator), dim=-1)
    return features, labels.numpy(), text


@pytest.fixture(params=sorted(handful.METHODS))
def method(request: pytest.FixtureRequest) -> type[handful.FewShotClassifier]:
    return handful.METHODS[request.param]

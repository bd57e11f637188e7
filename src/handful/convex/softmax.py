"""What the losses of the room share: the cross-entropy of some images, and what is wrong with each."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 2048
"""Images whose logits are looked at together, so that they stay in the processor's cache."""
TINY = 1e-30
"""Least curvature: where each image is sure and nothing pulls."""


def shares(x: Tensor, weights: Tensor | None) -> Tensor:
    """Give what each of the images `x [N, ...]` counts in the mean, `[N]`: alike, or by weights of mean 1."""
    return torch.full_like(x[:, 0], 1 / len(x)) if weights is None else weights.to(x.dtype) / len(x)


def cross_entropy(logits: Tensor, labels: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Give the sum of `share_i CE_i`, and the probabilities less the one-hot labels `[N, C]`.

    The latter is the gradient by each image's logits but for its share.
    """
    logs = logits.log_softmax(1)
    loss = -(share * logs.gather(1, labels[:, None])[:, 0]).sum()
    wrong = logs.exp_()
    wrong[torch.arange(len(labels)), labels] -= 1
    return loss, wrong

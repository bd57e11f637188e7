"""Weights under which every class counts alike, however many images of it there are.

An image of a class of n images weighs `N / (C n)`: N images, C classes that have any. The weights of a class
add up to `N / C`, the mean weight is 1, and where classes have equally many images each is 1 to the last bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

WHOLE = 2**20
"""What a weight of 1 is as a whole number: sums of such are exact, so that ties stay ties."""


def is_unequal(labels: Tensor) -> bool:
    """Whether the classes that have images have unequal numbers of them, for labels `[N]`."""
    counts = torch.bincount(labels)
    return len(counts[counts > 0].unique()) > 1


def class_weighting(counts: Tensor) -> Tensor:
    """Give the weight of an image of each class, for numbers of images `[..., C]`; finite for 0."""
    counts = counts.double()
    mean = counts.sum(-1, keepdim=True) / (counts > 0).sum(-1, keepdim=True).clamp(min=1)
    return mean / counts.clamp(min=1)


def image_weights(labels: Tensor) -> Tensor:
    """Give the weight of each image `[N]`, of mean 1, float64."""
    return class_weighting(torch.bincount(labels))[labels]


def effective_number(counts: Tensor) -> float:
    """Give how many images of equal classes have as certain a mean over classes, for their numbers `[C]`."""
    counts = counts[counts > 0].double()
    return len(counts) ** 2 / float((1 / counts).sum())


def whole_weights(labels: Tensor, balance: bool) -> Tensor:
    """Give what a right answer to each image counts `[N]`, whole numbers; without balance, alike."""
    if not balance:
        return torch.ones_like(labels)
    return (WHOLE * image_weights(labels)).round().long()


def share_right(right: Tensor, labels: Tensor, balance: bool) -> float:
    """Give the accuracy, 0 to 1, by which images are right `[N]`; with balance, the mean over classes."""
    weights = whole_weights(labels, balance)
    return int(weights[right].sum()) / max(int(weights.sum()), 1)


def balanced_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Draw the rows of an epoch `[N]` in which each class comes `N / C` times, give or take one.

    A class of fewer images repeats them, each as often as the others of it give or take one; a class of more
    leaves out some, other ones in each epoch.
    """
    classes, counts = labels.unique(return_counts=True)
    own = labels.argsort(stable=True).split(counts.tolist())
    share, rest = divmod(len(labels), len(classes))
    shares = torch.full_like(classes, share)
    shares[torch.randperm(len(classes), generator=generator)[:rest]] += 1
    drawn = [
        rows[torch.randperm(len(rows), generator=generator)[: size - first]]
        for rows, size in zip(own, shares.tolist(), strict=True)
        for first in range(0, size, len(rows))
    ]
    order = torch.cat(drawn)
    return order[torch.randperm(len(order), generator=generator)]

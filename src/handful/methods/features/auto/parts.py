"""The four heads of the blend, what each learns, and what each says of images that it has not seen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from handful.cache import affinity
from handful.convex.adapter import adapt
from handful.convex.probe import class_confidence, default_strength, probe
from handful.left_out.ridge import LinearSystem
from handful.selection import shot_numbers

NAMES = ("names", "adapter", "probe", "ridge")
"""Of the parts, in their order."""
ADAPTER = 0.03
"""Strength of the adapter's penalty, at CLIP's scale of 100."""
CAUTIOUS = 300
"""Times as strong is the adapter's penalty where images and names do not move together."""
BETA, LAMBDA = 1.0, 0.1
"""Sharpness of the ridge's kernel, and its penalty."""
LANDMARKS = 2048
"""Images at most that the ridge's kernel looks at."""
JITTER = 1e-8
"""On the diagonal of the landmarks' kernel, of which 1 is the diagonal."""
STEPS, TOLERANCE = 40, 0.03
"""Evaluations of adapter and probe at most, and what is left of the gradient: they stop early, which is .3
to .8 points better at one shot than to go to the end, and no worse at more."""


@dataclass(frozen=True)
class Problem:
    """A support set as the parts see it: unit features `[N, E]`, labels `[N]`, unit class weights `[C, E]`,
    the inverse temperature, and what each image weighs `[N]` where classes count alike (else None)."""

    x: Tensor
    labels: Tensor
    text: Tensor
    scale: float
    weights: Tensor | None

    def choose(self, rows: Tensor) -> Problem:
        """Give the problem of some images, by a mask; they keep their weights."""
        weights = None if self.weights is None else self.weights[rows] / self.weights[rows].mean()
        return Problem(self.x[rows], self.labels[rows], self.text, self.scale, weights)


@dataclass(frozen=True)
class Parts:
    """What the parts learned.

    Attributes
    ----------
    text, scale
        T `[C, E]`, and the inverse temperature s.
    adapter
        M `[E, E]`.
    moved
        W - T `[C, E]`, the linear probe's.
    landmarks, coefficients
        `[m, E]`, and `[m, C]`.
    """

    text: Tensor
    scale: float
    adapter: Tensor
    moved: Tensor
    landmarks: Tensor
    coefficients: Tensor

    def logits(self, x: Tensor) -> Tensor:
        """Give the logits of each part for unit features `[N, E]`: `[4, N, C]`."""
        names = self.scale * x @ self.text.T
        adapted = self.scale * F.normalize(x + x @ self.adapter, dim=-1) @ self.text.T
        probed = names + self.scale * x @ self.moved.T
        ridge = near(x, self.landmarks) @ self.coefficients
        return torch.stack([names, adapted, probed, ridge - ridge.mean(1, keepdim=True)])


def near(x: Tensor, landmarks: Tensor) -> Tensor:
    """The kernel `exp(-beta (1 - u . v))` of unit vectors, `[N, m]`."""
    return affinity(x @ landmarks.T, BETA)


def landmark_rows(labels: Tensor, most: int) -> Tensor:
    """Give the rows of the images that the ridge's kernel looks at: all, or the first ones of each class."""
    if len(labels) <= most:
        return torch.arange(len(labels))
    return shot_numbers(labels).argsort(stable=True)[:most].sort().values


@dataclass(frozen=True)
class Ridge:
    """Kernel ridge regression of the one-hot labels on landmarks.

    With all images as landmarks it is exactly `k(x, X) (K + lambda W^-1)^-1 Y`; with some of them, the best
    fit by the functions that these span (the Nystroem form), in bounded memory. Both are a linear ridge on
    the features `k(x, L) R^-T`, where `k(L, L) = R R^T`.
    """

    landmarks: Tensor
    root: Tensor
    system: LinearSystem
    targets: Tensor

    @classmethod
    def of(cls, problem: Problem) -> Ridge:
        """Prepare the system of a support set."""
        landmarks = problem.x[landmark_rows(problem.labels, LANDMARKS)]
        kernel = near(landmarks.double(), landmarks.double())
        root = torch.linalg.cholesky(kernel + JITTER * torch.eye(len(kernel), dtype=kernel.dtype))
        across = near(problem.x.double(), landmarks.double())
        features = torch.linalg.solve_triangular(root, across.T, upper=False).T
        weights = torch.ones(len(problem.x)) if problem.weights is None else problem.weights
        targets = F.one_hot(problem.labels, len(problem.text)).double()
        return cls(landmarks, root, LinearSystem(features, weights.double()), targets)

    def coefficients(self) -> Tensor:
        """`[m, C]` of the landmarks."""
        found = self.system.primal(self.targets, LAMBDA)
        return torch.linalg.solve_triangular(self.root.T, found, upper=True).float()

    def left_out(self, folds: Tensor) -> Tensor:
        """Give what fits without each fold say of its images, exactly and without fitting again: `[N, C]`."""
        (found,) = self.system.left_out(self.targets, folds, [LAMBDA])
        return (found - found.mean(1, keepdim=True)).float()


def learn_convex(problem: Problem, adapter_strength: float) -> tuple[Tensor, Tensor]:
    """Learn the adapter M `[E, E]` and the linear probe's `W - T` `[C, E]`."""
    x, labels, text, scale = problem.x, problem.labels, problem.text, problem.scale
    adapter = adapt(
        x, labels, text, scale, adapter_strength, problem.weights, steps=STEPS, tolerance=TOLERANCE
    )
    confidence = class_confidence(scale * x @ text.T, labels)
    anchors = default_strength(labels, scale) * confidence
    moved, _ = probe(x, labels, text, scale, anchors, problem.weights, most=STEPS, tolerance=TOLERANCE)
    return adapter, moved - text


def learn(problem: Problem, ridge: Ridge, adapter_strength: float) -> Parts:
    """Learn all parts."""
    adapter, moved = learn_convex(problem, adapter_strength)
    return Parts(problem.text, problem.scale, adapter, moved, ridge.landmarks, ridge.coefficients())

"""How images lie before and after adaptation (CLIP-Adapter, Gao et al. 2021, the figure of its manifolds)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score

NEIGHBOURS = 5
PERPLEXITY = 30.0
SHOWN = 10
"""Classes of a picture, those with the most images."""


@dataclass(frozen=True)
class Manifold:
    """What a picture of features says, as numbers.

    Attributes
    ----------
    silhouette
        Mean over images, by cosine distance: 1 where classes lie apart, 0 where they touch, below where an
        image lies nearer to another class.
    neighbours
        Share of images whose 5 nearest others, by cosine, are most often of their own class.
    places
        `[n, 2]`, t-SNE of the images of the classes with the most images.
    labels
        `[n]`, their classes.
    """

    silhouette: float
    neighbours: float
    places: NDArray[np.float64]
    labels: NDArray[np.int64]


def manifold(features: NDArray[np.float32], labels: NDArray[np.int64], seed: int = 0) -> Manifold:
    """Measure unit features `[N, E]` of images with labels `[N]`, and lay them out in a plane."""
    several = 1 < len(np.unique(labels)) < len(labels)
    silhouette = float(silhouette_score(features, labels, metric="cosine")) if several else float("nan")
    shown = np.argsort(-np.bincount(labels), kind="stable")[:SHOWN]
    rows = np.flatnonzero(np.isin(labels, shown))
    perplexity = min(PERPLEXITY, max((len(rows) - 1) / 3, 1.0))
    layout = TSNE(2, perplexity=perplexity, init="pca", random_state=seed)
    places = layout.fit_transform(features[rows]) if len(rows) > 2 else np.zeros((len(rows), 2))
    return Manifold(silhouette, neighbour_accuracy(features, labels), places, labels[rows])


def neighbour_accuracy(features: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Share of images classified right by their nearest others; of tied classes the lower one counts."""
    alike = features @ features.T
    np.fill_diagonal(alike, -np.inf)
    count = min(NEIGHBOURS, len(labels) - 1)
    nearest = labels[np.argsort(-alike, axis=1, kind="stable")[:, :count]]
    votes = np.stack([(nearest == row).sum(1) for row in range(labels.max() + 1)], 1)
    return float((votes.argmax(1) == labels).mean())

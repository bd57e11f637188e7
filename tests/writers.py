"""Everything that writes files: what it writes, and how a test reads it back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import handful

ROUNDS = 20


def classifiers() -> list[handful.FewShotClassifier]:
    """Two, of no backbone, with other classes, tensors and numbers."""
    rng, found = np.random.default_rng(0), []
    for number in range(2):
        names = ["lamp", "mug", "cup"][: 2 + number]
        features = rng.normal(size=(2 * len(names), 8)).astype(np.float32)
        weights = rng.normal(size=(len(names), 8)).astype(np.float32)
        found.append(
            handful.TipAdapter(alpha=1.0 + number).fit(
                features, names * 2, class_names=names, class_weights=weights
            )
        )
    return found


def together(actions: list[Callable[[], object]]) -> None:
    """Do things in threads that begin at once."""
    with ThreadPoolExecutor(len(actions)) as pool:
        ready = threading.Barrier(len(actions))
        for running in [pool.submit(lambda act=act: (ready.wait(), act())) for act in actions]:
            running.result()

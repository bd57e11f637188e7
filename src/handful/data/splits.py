"""Splits and few-shot draws, item by item as CoOp makes them (methods.md §0.5)."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handful.data.sets import ImageSet
from handful.errors import DataError, check_integer


def read_split_zhou(file: str | Path, images: str | Path) -> dict[str, ImageSet]:
    """Read a CoOp `split_zhou_*.json`: `{"train": [[path, label, name], ...], "val", "test"}`.

    Parameters
    ----------
    file
        The JSON file.
    images
        The folder that its paths start from.

    Returns
    -------
    dict
        `"train"`, `"val"`, `"test"`; the class list is the training list's, sorted by label, and
        the order of items is the file's (a draw depends on it).
    """
    try:
        parts = json.loads(Path(file).read_bytes())
        table = {int(label): str(name) for _, label, name in parts["train"]}
        names = tuple(table[label].replace("_", " ") for label in range(len(table)))
        return {
            part: ImageSet(
                tuple(Path(images) / path for path, _, _ in parts[part]),
                np.array([label for _, label, _ in parts[part]], dtype=int),
                names,
            )
            for part in ("train", "val", "test")
        }
    except OSError as error:
        raise DataError(f"Got file={str(file)!r}: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f'{file} is not a CoOp split: expected {{"train": [[path, label, name], ...], "val": '
            f'..., "test": ...}} with labels 0, 1, 2, ... ({type(error).__name__}: {error}).'
        ) from error


def draw(
    labels: Sequence[int] | NDArray[Any],
    shots: int,
    seed: int,
    val_labels: Sequence[int] | NDArray[Any] | None = None,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Draw `shots` images of each class, exactly as CoOp does for the same seed.

    Classes come in the order of their first appearance, items from Python's `random.sample`, all of
    a class that has fewer; validation items (`min(shots, 4)` of each class) come afterwards from the
    same generator.

    Returns
    -------
    train, val
        Rows of `labels` and of `val_labels` (empty when there are none), in drawing order.
    """
    shots, seed = check_integer("shots", shots, 1), check_integer("seed", seed)
    generator = random.Random(seed)
    train = _sample(labels, shots, generator)
    val = _sample([] if val_labels is None else val_labels, min(shots, 4), generator)
    return train, val


def _sample(labels: Sequence[int] | NDArray[Any], count: int, generator: random.Random) -> NDArray[Any]:
    rows_of: dict[int, list[int]] = {}
    for row, label in enumerate(labels):
        rows_of.setdefault(int(label), []).append(row)
    chosen = [
        row
        for rows in rows_of.values()
        for row in (generator.sample(rows, count) if len(rows) >= count else rows)
    ]
    return np.array(chosen, dtype=int)


def halves(images: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Cut a set into base and new classes: the first half of them in label order, and the rest (§9.4)."""
    count = (len(images.class_names) + 1) // 2
    return images.of_classes(range(count)), images.of_classes(range(count, len(images.class_names)))


def few_shot(images: ImageSet, shots: int, seed: int = 1) -> ImageSet:
    """Draw a support set of `shots` images for each class (CoOp's draw for this seed)."""
    return images[draw(images.labels, shots, seed)[0]]

"""Class weights on ground-truth boxes: rare classes against frequent ones.

A part of what Song et al. 2023 test as open-vocabulary detection.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from handful.backbones import Backbone
from handful.data.regions import Regions
from handful.data.splits import draw
from handful.errors import DataError
from handful.features import encode
from handful.prompts import class_weights
from handful.refiner import Refiner, refine
from handful.types import Templates

BOXES = 1024
"""Crops in memory at a time."""
ZOOMS = (1.0, 1.5)
"""How much of a box's surroundings its two crops hold, as in ViLD (Gu et al. 2022, §3.2)."""


@dataclass(frozen=True)
class RegionScore:
    """How many boxes of a group of classes are classified right, 0 to 1."""

    method: str
    group: str
    classes: int
    boxes: int
    accuracy: float


def region_features(backbone: Backbone, regions: Regions) -> Tensor:
    """Give a unit vector for each box, `[N, E]`: the mean of its crops' unit features."""
    parts = [
        torch.stack([encode(backbone, some.crops(zoom), cache=False).directions() for zoom in ZOOMS]).mean(0)
        for some in (regions[start : start + BOXES] for start in range(0, len(regions), BOXES))
    ]
    return F.normalize(torch.cat(parts), dim=-1)


def region_classification(
    backbone: Backbone,
    train: Regions,
    test: Regions,
    refiner: Refiner,
    *,
    shots: int = 10,
    seed: int = 1,
    rare: int = 10,
    frequent: int = 100,
    templates: Templates = "default",
) -> list[RegionScore]:
    """Classify ground-truth boxes by class weights as they are, and refined by a few boxes of each class.

    What an open-vocabulary detector's head does with a box that it found (Song et al. 2023, LVIS): the
    detector is left out, so this measures the class weights alone.

    Parameters
    ----------
    backbone
        Whose space the class weights are in.
    train, test
        Boxes of the same classes; `shots` of each class (all, where there are fewer) from `train`
        refine its weight, which may have none.
    refiner
        The Meta-Adapter's network, trained on other classes.
    seed
        Of the draw.
    rare, frequent
        As LVIS counts: a class with at most `rare` training boxes is rare, one with more than
        `frequent` is frequent, others are common.

    Returns
    -------
    scores
        For each method and group: micro accuracy over the boxes of its classes.
    """
    if not len(train) or not len(test):
        raise DataError(f"Got {len(train)} training and {len(test)} test boxes, expected some of each.")
    if train.class_names != test.class_names:
        raise DataError("Got training and test boxes of different classes, expected the same categories.")
    text = class_weights(backbone, train.class_names, templates).cpu()
    rows, _ = draw(train.labels, shots, seed)
    support, labels = region_features(backbone, train[rows]), torch.as_tensor(train.labels[rows])
    weights = {"zero-shot": text, "meta-adapter": refine(text, support, refiner, labels)}
    x, truth = region_features(backbone, test), torch.as_tensor(test.labels)
    counts = torch.bincount(torch.as_tensor(train.labels), minlength=len(text))
    groups = {
        "rare": counts <= rare,
        "common": (counts > rare) & (counts <= frequent),
        "frequent": counts > frequent,
        "all": counts >= 0,
    }
    scores = []
    for method, classifier in weights.items():
        right = (x @ classifier.T).argmax(1) == truth
        for group, members in groups.items():
            mine = members[truth]
            share = float(right[mine].double().mean()) if mine.any() else float("nan")
            scores.append(RegionScore(method, group, int(members.sum()), int(mine.sum()), share))
    return scores

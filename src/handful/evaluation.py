"""How good is a fitted classifier on labelled images that were kept apart, beside zero-shot?"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from handful import checkpoint
from handful.data import ImageSet
from handful.estimator import FewShotClassifier
from handful.features import encode
from handful.heads import check_logits
from handful.methods import ZeroShot
from handful.metrics import accuracy, per_class_accuracy


@dataclass(frozen=True)
class Evaluation:
    """How a fitted classifier did on labelled images, accuracies 0 to 1.

    Attributes
    ----------
    zero_shot
        Accuracy of the backbone with the class names alone, on the same images.
    per_class
        Accuracy on each class that has images, by its name.
    """

    accuracy: float
    zero_shot: float
    images: int
    classes: int
    method: str
    selection: str
    per_class: dict[str, float]

    def record(self, folder: str | Path, data: str | Path) -> bool:
        """Write the score into a saved classifier and its card, the data by the last two parts of its path.

        Returns
        -------
        bool
            Whether the card has it: one that a person wrote is left as it is.
        """
        score = {
            "data": "/".join(Path(data).absolute().parts[-2:]), "images": self.images,
            "accuracy": self.accuracy, "zero_shot": self.zero_shot,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        }  # fmt: skip
        return checkpoint.record_score(Path(folder), score)


def evaluate(clf: FewShotClassifier, images: ImageSet) -> Evaluation:
    """Score a fitted classifier on images of its classes, beside zero-shot.

    Raises
    ------
    DataError
        A class of the images is not one of the classifier's.
    """
    names = clf.class_names_
    truth = clf.match(images.class_names)[images.labels]
    predicted, without = (logits.argmax(1) for logits in beside_zero_shot(clf, images))
    by_class = per_class_accuracy(predicted, truth, len(names))
    return Evaluation(
        accuracy(predicted, truth),
        accuracy(without, truth),
        len(images),
        len(names),
        clf.fitted_.method,
        clf.selection_,
        {name: float(value) for name, value in zip(names, by_class, strict=True) if not np.isnan(value)},
    )


def beside_zero_shot(
    clf: FewShotClassifier, images: ImageSet
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Give logits `[N, C]` of a classifier and of zero-shot, for images that are read once for both."""
    backbone, head = clf.loaded_backbone(), clf.head_
    zero = ZeroShot(backbone, templates=getattr(clf, "templates", "default")).fit(
        class_names=clf.class_names_
    )
    columns = zero.match(clf.class_names_)  # an old classifier's may be in another order
    if head.needs != "pixels":
        features = encode(backbone, images)
        return clf.logits(features), zero.logits(features)[:, columns]
    with torch.no_grad():
        pairs = [
            (head.read(pixels), zero.head_.read(backbone.encode_image(pixels).cpu()))
            for pixels in clf.query(images)
        ]
    own, plain = (check_logits(torch.cat(logits)).numpy() for logits in zip(*pairs, strict=True))
    return own, plain[:, columns]

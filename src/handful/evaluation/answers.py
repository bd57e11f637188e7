"""What a classifier and zero-shot say of images, each image read once for both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from handful.data.images import refuse_unreadable
from handful.estimator import FewShotClassifier
from handful.estimator.confidence import probabilities
from handful.features import Features, encode
from handful.heads import check_logits
from handful.methods import ZeroShot
from handful.types import ImageLike


@dataclass(frozen=True)
class Answers:
    """What is said of N images.

    Attributes
    ----------
    predicted
        `[N]`, the row of the most likely class.
    probabilities
        `[N, C]`, as calibrated.
    zero_shot
        `[N]`, the row of the class that zero-shot gives; empty where it was not asked.
    familiarity
        `[N]`, as `handful.estimator.confidence.Calibration` measures it; None without a calibration.
    digests
        `[N]`, SHA-256 of the images.
    """

    predicted: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    zero_shot: NDArray[np.int64]
    familiarity: NDArray[np.float64] | None
    digests: tuple[str, ...]

    @property
    def sureness(self) -> NDArray[np.float64]:
        """The largest probability of each image, `[N]`."""
        return self.probabilities.max(1)


@torch.no_grad()
def ask(
    clf: FewShotClassifier, items: Sequence[ImageLike], zero: ZeroShot | None = None, familiar: bool = False
) -> Answers:
    """Ask a classifier for images, and zero-shot where it is given; how familiar they look if it is wanted.

    Raises
    ------
    UnreadableImages
        Some can't be read.
    """
    head, calibration, backbone = clf.head_, clf.calibration_, clf.loaded_backbone()
    read, on_pixels = head.reader(), head.needs == "pixels"
    given: Any = items if on_pixels else encode(backbone, items)
    failures: dict[int, str] = {}
    logits: list[Tensor] = []
    plain: list[Tensor] = []
    familiarity: list[Tensor] = []
    digests: list[str] = []
    for part in clf.parts(given):
        failures |= part.failures
        if not part.rows:
            continue
        x = part.values
        logits.append(read(x))
        if familiar and calibration is not None:
            shares = probabilities(logits[-1], calibration)
            familiarity.append(calibration.familiarity(head.image_features(x), shares))
        if on_pixels:
            digests += part.digests
            plain += [zero.head_.read(backbone.encode_image(x).cpu())] if zero else []
    refuse_unreadable(failures, items)
    if isinstance(given, Features):
        plain += [zero.head_.read(part.values) for part in zero.parts(given)] if zero else []
        digests += given.digests
    own = check_logits(torch.cat(logits))
    return Answers(
        own.argmax(1).numpy(),
        probabilities(own, calibration).double().numpy(),
        _rows(clf, zero, torch.cat(plain)) if zero and plain else np.empty(0, dtype=np.int64),
        torch.cat(familiarity).double().numpy() if familiarity else None,
        tuple(digests),
    )


def _rows(clf: FewShotClassifier, zero: ZeroShot, logits: Tensor) -> NDArray[np.int64]:
    """Give zero-shot's answers `[N]` as rows of a classifier: an older version ordered them otherwise."""
    return clf.match(zero.class_names_)[check_logits(logits).argmax(1).numpy()]


def zero_shot_beside(clf: FewShotClassifier) -> ZeroShot:
    """Give zero-shot for a classifier's classes, with its backbone and templates."""
    templates = getattr(clf, "templates", "default")
    return ZeroShot(clf.loaded_backbone(), templates=templates).fit(class_names=clf.class_names_)

"""Why a classifier says what it says: the margins of its classes, and the images that decided."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from handful.errors import DataError, check_integer
from handful.estimator.confidence import probabilities
from handful.estimator.fitted import Fitted


@dataclass(frozen=True)
class Evidence:
    """A support image that spoke for its class: its share of what all of them say, -1 to 1.

    Shares add up to 1 in absolute value; a negative one spoke against its class.
    """

    image: str
    class_name: str
    share: float


@dataclass(frozen=True)
class Explanation:
    """The answer for one image, and what it rests on."""

    predicted: str
    probability: float
    margins: dict[str, float]
    """How far each class's logit is above the best other one, largest first; one at most is positive."""
    support: list[Evidence]
    """The support images that said most, whatever their class; empty for a method that keeps none."""

    def __str__(self) -> str:
        lines = [f"{self.predicted} ({100 * self.probability:.1f} %)"]
        lines += [f"  margin {margin:+8.3f}  {name}" for name, margin in list(self.margins.items())[:5]]
        lines += [f"  share  {100 * e.share:6.1f} %  {e.class_name}  {e.image}" for e in self.support]
        return "\n".join(lines)


@torch.no_grad()
def explain(fitted: Fitted, x: Tensor, top: int) -> Explanation:
    """Explain the answer for what the head needs of one image, `[1, ...]`.

    Raises
    ------
    DataError
        It is not one image.
    """
    top = check_integer("top", top, 0)
    if len(x) != 1:
        raise DataError(f"Got {len(x)} images, expected one: explain each on its own.")
    logits = fitted.head.read(x)[0].double()
    others = logits.topk(min(2, len(logits))).values
    best = logits == others[0]
    margins = logits - torch.where(best, others[-1], others[0])
    order = margins.argsort(descending=True, stable=True).tolist()
    names = list(fitted.class_names)
    return Explanation(
        names[order[0]],
        float(probabilities(logits, fitted.calibration)[order[0]]),
        {names[row]: float(margins[row]) for row in order},
        _decisive(fitted, x[0], names, top),
    )


def _decisive(fitted: Fitted, x: Tensor, names: list[str], top: int) -> list[Evidence]:
    """Give the support images that said most for one image."""
    said, support = fitted.head.evidence(x), fitted.head.support
    if said is None or support is None:
        return []
    said = said.double()
    shares = said / said.abs().sum().clamp(min=torch.finfo(torch.float64).tiny)
    labels, items = support.labels.tolist(), fitted.support
    return [
        Evidence(items[row] if row < len(items) else f"image {row}", names[labels[row]], float(shares[row]))
        for row in said.argsort(descending=True, stable=True)[:top].tolist()
    ]

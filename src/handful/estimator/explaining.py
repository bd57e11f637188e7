"""Why a classifier says what it says: the margins of its classes, and the images that decided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from handful.errors import DataError, check_integer

if TYPE_CHECKING:
    from handful.estimator import FewShotClassifier


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


def explain(clf: FewShotClassifier, image: Any, top: int) -> Explanation:
    """See `FewShotClassifier.explain`."""
    head: Any = clf.fitted_head()
    top = check_integer("top", top, 0)
    features = torch.cat(list(clf.query(image)))
    if len(features) != 1:
        raise DataError(f"Got {len(features)} images, expected one: explain each on its own.")
    logits = head.logits(features)[0].double()
    others = logits.topk(min(2, len(logits))).values
    best = logits == others[0]
    margins = logits - torch.where(best, others[-1], others[0])
    order = margins.argsort(descending=True, stable=True).tolist()
    names = [str(name) for name in clf.classes_]
    support: list[Evidence] = []
    if hasattr(head, "evidence"):
        said: torch.Tensor = head.evidence(features[0]).double()
        shares = said / said.abs().sum().clamp(min=torch.finfo(torch.float64).tiny)
        labels = head.labels.tolist()
        for row in said.argsort(descending=True, stable=True)[:top].tolist():
            name = clf.support_[row] if row < len(clf.support_) else f"image {row}"
            support.append(Evidence(name, names[labels[row]], float(shares[row])))
    return Explanation(
        names[order[0]],
        float(clf.probabilities(logits)[order[0]]),
        {names[row]: float(margins[row]) for row in order},
        support,
    )

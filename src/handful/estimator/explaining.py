"""Why a classifier says what it says: the margins of its classes, and the names and images that decided."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from handful.errors import DataError, check_integer
from handful.estimator.confidence import probabilities
from handful.estimator.fitted import Fitted


@dataclass(frozen=True)
class Evidence:
    """A support image that spoke for the answer: its share of what decided, -1 to 1; see `Explanation`."""

    image: str
    class_name: str
    share: float


@dataclass(frozen=True)
class Explanation:
    """The answer for one image, and what it rests on.

    What decided is the lead of the answer over the second class, `rival`: a sum of what the class names say
    and what each support image says. Shares are of its absolute parts, so that they add up to 1 in absolute
    value; a negative one spoke for the rival. Together they speak for the answer.

    Attributes
    ----------
    predicted, probability
        The most likely class.
    margins
        How far each class's logit is above the best other one, largest first; one at most is positive.
    rival
        The second class; empty where there is one class.
    names, images
        Shares of the class names, and of all support images together: of a method that keeps no support set,
        None.
    support
        The support images that spoke most for the answer, of whatever class.
    """

    predicted: str
    probability: float
    margins: dict[str, float]
    support: list[Evidence]
    rival: str = ""
    names: float | None = None
    images: float | None = None

    def __str__(self) -> str:
        lines = [f"{self.predicted} ({100 * self.probability:.1f} %)"]
        lines += [f"  margin {margin:+8.3f}  {name}" for name, margin in list(self.margins.items())[:5]]
        if self.names is not None and self.images is not None and self.rival:
            names, images = 100 * self.names, 100 * self.images
            lines.append(f"  rather than {self.rival}: {names:+.1f} % by names, {images:+.1f} % by images")
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
    found = Explanation(
        names[order[0]],
        float(probabilities(logits, fitted.calibration)[order[0]]),
        {names[row]: float(margins[row]) for row in order},
        [],
    )
    parts = fitted.head.margin(x[0], order[0], order[1]) if len(order) > 1 else None
    support = fitted.head.support
    if parts is None or support is None:
        return found
    by_names, by_images = (part.double() for part in parts)
    whole = by_names.abs() + by_images.abs().sum()
    shares = by_images / whole.clamp(min=torch.finfo(torch.float64).tiny)
    labels, items = support.labels.tolist(), fitted.support
    said = [
        Evidence(items[row] if row < len(items) else f"image {row}", names[labels[row]], float(shares[row]))
        for row in shares.argsort(descending=True, stable=True)[:top].tolist()
    ]
    by_all = float(shares.sum())
    return Explanation(
        found.predicted, found.probability, found.margins, said, names[order[1]],
        float(by_names / whole.clamp(min=torch.finfo(torch.float64).tiny)), by_all,
    )  # fmt: skip

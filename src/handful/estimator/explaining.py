"""Why a classifier says what it says: the margins of its classes, and the names and images that decided."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from handful.errors import DataError, check_integer
from handful.estimator.confidence import probabilities
from handful.estimator.fitted import Fitted


@dataclass(frozen=True)
class Evidence:
    """A support image that spoke for the answer: its share, 0 to 1, of what all images said for it."""

    image: str
    class_name: str
    share: float


@dataclass(frozen=True)
class Explanation:
    """The answer for one image, and what it rests on.

    What decided is the lead of the answer over the second class, `rival`: a sum of what the class names say
    and what each support image says (`Head.margin`). It is never below 0, so not all of it speaks for the
    rival.

    Attributes
    ----------
    predicted, probability
        The most likely class.
    margins
        How far each class's logit is above the best other one, largest first; one at most is positive.
    support
        The support images that spoke most for the answer: none that spoke against it, and none of the rival,
        which speak for the answer at most by being unlike the image.
    rival
        The second class; empty where there is one class.
    names, images
        Shares of the class names, and of all support images together, in that lead. Their absolute values
        add up to 1; a negative one spoke for the rival. None of a method that keeps no support set.
    """

    predicted: str
    probability: float
    margins: dict[str, float]
    support: list[Evidence]
    rival: str = ""
    names: float | None = None
    images: float | None = None

    def decided(self) -> str:
        """Say in a line what decided: "rather than kiwi: names 35 %, images 65 %"; empty if unknown."""
        if self.names is None or self.images is None or not self.rival:
            return ""
        names, images = f"{100 * abs(self.names):.0f} %", f"{100 * abs(self.images):.0f} %"
        if self.names < 0:
            what = f"by the images ({images}), against the names ({names})"
        elif self.images < 0:
            what = f"by the names ({names}), against the images ({images})"
        else:
            what = f"names {names}, images {images}"
        return f"rather than {self.rival}: {what}"

    def __str__(self) -> str:
        lines = [f"{self.predicted} ({100 * self.probability:.1f} %)"]
        lines += [f"  margin {margin:+8.3f}  {name}" for name, margin in list(self.margins.items())[:5]]
        if decided := self.decided():
            lines.append(f"  {decided}")
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
    by_names, by_images = float(parts[0]), parts[1].double()
    by_all = float(by_images.sum())
    whole, said_for = (abs(by_names) + abs(by_all)) or 1.0, by_images.clamp(min=0)
    shares = said_for / said_for.sum().clamp(min=torch.finfo(torch.float64).tiny)
    labels, items = support.labels.tolist(), fitted.support
    order_of_images = shares.argsort(descending=True, stable=True).tolist()
    rows = [row for row in order_of_images if shares[row] > 0 and labels[row] != order[1]][:top]
    said = [
        Evidence(items[row] if row < len(items) else f"image {row}", names[labels[row]], float(shares[row]))
        for row in rows
    ]
    return replace(found, support=said, rival=names[order[1]], names=by_names / whole, images=by_all / whole)

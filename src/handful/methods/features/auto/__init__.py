"""The best known answer by default: a blend of class names, an adapter, a linear probe and a kernel ridge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from handful.backbones import Backbone
from handful.balance import image_weights
from handful.errors import unexpected
from handful.estimator import FewShotClassifier, HeldOut, Learned, Task
from handful.heads import Head
from handful.left_out.stacking import stack
from handful.methods.features.auto.head import BlendHead
from handful.methods.features.auto.parts import (
    ADAPTER,
    CAUTIOUS,
    NAMES,
    Parts,
    Problem,
    Ridge,
    learn,
    learn_convex,
)
from handful.methods.features.auto.transfer import moves_together, worth_of_names
from handful.metrics import beside
from handful.progress import bar
from handful.selection import shot_numbers
from handful.types import Templates

FIXED = (0.0, 0.4, 0.4, 8.0)
"""The blend from two images of a class on, where it is not searched, and what a search is drawn to."""
ONE_SHOT = (0.27, 0.36, 0.27, 2.7)
"""At one image of a class."""
NAMES_ALONE, IMAGES_ALONE = (0.5, 0.5, 0.0, 0.0), (0.0, 0.0, 0.25, 5.0)
"""At one image of a class, where images and names don't move together; where names say little."""
LITTLE = 0.1
"""Worth of names, of 1, up to which they say little."""
FOLDS, HELD_OUT, ENOUGH = 4, 20, 2000
"""Shots that are held out at most, one of every class at a time; of few classes as many as make 20 images,
which is what it takes to call an image unknown at a false-alarm rate of .05; and images that are enough: two
shots of 1,000 classes."""
LOOKED_AT = 1000
"""Images, about, that say how much each part of a fixed blend counts."""
UNSURE = 0.01
"""Of the fixed blend is taken where all parts together say nothing of held-out images."""
STRENGTH, IMAGES = 0.03, 1.0
"""Of drawing to the fixed blend: this, and this over the number of held-out images."""


class Auto(FewShotClassifier):
    """What is best known for a handful of images: nothing to choose, and an answer that says how sure it is.

    With x the unit features, T the text classifier and s the scale, logits are `sum_h w_h Z_h` of

    - names: `s x T^T`, zero-shot;
    - adapter: `s norm(x + x M) T^T`, the regularised linear adapter (`LinearAdapter`);
    - probe: `s x W^T`, class weights that stay near their names (`LinearProbe`);
    - ridge: kernel ridge regression of the one-hot labels (`exp(-(1 - u . v))`, lambda 0.1), centred.

    Each learns on its own; adapter and probe stop early. Their weights are found inside the support set: up
    to four times (more often of few classes) one shot of every class is held out, exactly in closed form for
    the ridge and by fits on the rest for the others, and `w >= 0` is at the minimum of the cross-entropy
    there plus what draws it to one fixed blend. Probabilities are calibrated by that, and prediction sets
    come with it.

    At one image of a class nothing can be held out. Two measures of the support set then decide between
    three fixed blends: what zero-shot knows of these images, and whether an adapter that is learned on one
    half of the classes leaves the names of the other half as good.

    No image but the support set's is ever looked at. `docs/feature-methods.md` has the evidence.

    Parameters
    ----------
    backbone
        A backbone, or the name of one.
    selection
        `"support"`: the blend is found as above. `"fixed"`: it is the same for every support set, which
        saves the fits of the held-out shots.
    templates
        Of the text classifier.
    balance
        Whether classes count alike where they have unequal numbers of images: each image then weighs
        `N / (C n)` in the loss of every part, and among those held out.
    class_names
        Names of the classes, for labels that scikit-learn encodes as integers; see `fit`.
    """

    method: ClassVar[str] = "auto"
    head_type: ClassVar[type[Head]] = BlendHead
    online: ClassVar[bool] = True
    trusts_names: ClassVar[bool] = False

    def __init__(
        self,
        backbone: Backbone | str | None = None,
        *,
        selection: Literal["support", "fixed"] = "support",
        templates: Templates = "default",
        balance: bool = True,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.backbone, self.selection, self.templates = backbone, selection, templates
        self.balance, self.class_names = balance, class_names

    def learn(self, task: Task) -> Learned:
        """Learn the parts, and find their weights on what they have not seen."""
        if self.selection not in ("support", "fixed"):
            raise unexpected("selection", self.selection, "'support' or 'fixed'")
        if not task.has("inputs") or not len(task.labels):
            return Learned(names_alone(task), notes=("No images: this is zero-shot.",))
        problem = Problem(
            task.features.directions(), task.labels, task.class_weights, task.scale, task.weights
        )
        together, worth = moves_together(problem), worth_of_names(problem)
        strength = ADAPTER if together else ADAPTER * CAUTIOUS
        folds = held_out_folds(problem.labels)
        searched = self.selection == "support" and bool((folds >= 0).any())
        with bar("Fitting", 1 + (int(folds.max()) + 1) * searched) as advance:
            ridge = Ridge.of(problem)
            parts = learn(problem, ridge, strength)
            advance(1, note="on all images")
            known: dict[str, Any] = {"names": round(worth, 3), "moves_together": together}
            if not searched:
                one = int(task.labels.bincount().max()) == 1
                blend = torch.tensor(_at_one_shot(worth, together) if one else FIXED)
                note = "One image of each class: the blend is a fixed one."
                notes = (note,) if one and self.selection == "support" else ()
                some = problem.x[:: max(len(problem.x) // LOOKED_AT, 1)]
                known |= _named(blend, parts.logits(some))
                return Learned(_head(problem, parts, blend), "fixed", known, notes)
            seen = left_out(problem, parts, ridge, folds, strength, advance)
        return self._stacked(problem, parts, folds, seen, known)

    def _stacked(
        self, problem: Problem, parts: Parts, folds: Tensor, seen: Tensor, known: dict[str, Any]
    ) -> Learned:
        """Weigh the parts by what they say of the held-out images, `[4, M, C]` as `left_out` gives it."""
        rows = (folds >= 0).nonzero()[:, 0]
        labels = problem.labels[rows]
        weights = None if problem.weights is None else image_weights(labels).float()
        blend = stack(seen, labels, torch.tensor(FIXED), STRENGTH + IMAGES / len(rows), weights).weights
        if not blend.any():  # no part is better than chance: an order of the classes all the same
            blend = UNSURE * torch.tensor(FIXED)
        blended = torch.einsum("h,hnc->nc", blend, seen)
        right, zero = ((one.argmax(1) == labels).numpy() for one in (blended, seen[0]))
        gain = beside(right, zero, labels.numpy())
        known |= _named(blend, seen)
        known["held_out"] = {
            "images": len(rows), "accuracy": round(gain.accuracy, 4), "zero_shot": round(gain.other, 4),
            "gain": round(gain.gain, 4), "gain_interval": [round(end, 4) for end in gain.gain_interval],
        }  # fmt: skip
        held = HeldOut(blended, rows, int(folds.max()) + 1, calibrated=True)
        return Learned(_head(problem, parts, blend), "support", known, held_out=held)


def held_out_folds(labels: Tensor) -> Tensor:
    """Give which fold each image is held out in, `[N]`: the j-th of each class in the j-th, up to four, or
    more of few classes.

    -1 is never: a later image, and one that is alone in its class.
    """
    numbers, counts = shot_numbers(labels), labels.bincount()
    most = max(FOLDS, math.ceil(HELD_OUT / len(labels.unique())))
    if int(((numbers < 2) & (counts[labels] > 1)).sum()) >= ENOUGH:
        most = 2
    return numbers.masked_fill((numbers >= most) | (counts[labels] == 1), -1)


def left_out(
    problem: Problem, parts: Parts, ridge: Ridge, folds: Tensor, strength: float, advance: Any
) -> Tensor:
    """Give what the parts say of the M held-out images by fits that have not seen their fold: `[4, M, C]`."""
    rows = (folds >= 0).nonzero()[:, 0]
    logits = torch.empty(len(NAMES), len(rows), len(problem.text))
    logits[3] = ridge.left_out(folds)[rows]
    for fold in range(int(folds.max()) + 1):
        out = folds == fold
        adapter, moved = learn_convex(problem.choose(~out), strength)
        others = Parts(
            problem.text, problem.scale, adapter, moved, parts.landmarks[:0], parts.coefficients[:0]
        )
        logits[:3, out[rows]] = others.logits(problem.x[out])[:3]
        advance(1, note="without a shot of each class")
    return logits


def _at_one_shot(worth: float, together: bool) -> tuple[float, ...]:
    """Choose among fixed blends where nothing can be held out."""
    if worth < LITTLE:
        return IMAGES_ALONE
    return ONE_SHOT if together else NAMES_ALONE


def _named(weights: Tensor, logits: Tensor) -> dict[str, Any]:
    """Write down the weights, and each part's share of how far logits `[4, N, C]` spread over classes.

    Weights alone are of logits of different size.
    """
    spread = weights * (logits - logits.mean(2, keepdim=True)).square().mean((1, 2)).sqrt()
    shares = spread / spread.sum().clamp(min=1e-12)
    return {
        key: {name: round(value, 4) for name, value in zip(NAMES, values.tolist(), strict=True)}
        for key, values in (("blend", weights), ("shares", shares))
    }


def _head(problem: Problem, parts: Parts, weights: Tensor) -> BlendHead:
    """Put together what stays."""
    return BlendHead(
        problem.text, parts.adapter.contiguous(), parts.moved, parts.coefficients.contiguous(), problem.x,
        problem.labels, problem.scale, tuple(weights.tolist()),
    )  # fmt: skip


def names_alone(task: Task) -> BlendHead:
    """Give zero-shot as a blend, for a task without an image."""
    text = task.class_weights
    nothing, width = torch.zeros_like(text), text.shape[1]
    return BlendHead(
        text, text.new_zeros(width, width), nothing, text.new_zeros(0, len(text)), text[:0],
        torch.zeros(0, dtype=torch.int64), task.scale, (1.0, 0.0, 0.0, 0.0),
    )  # fmt: skip

"""SS-Text and SS-Text+: class weights between names and images, in closed form (Silva-Rodríguez et al. 2025,
Few-Shot, Now for Real: Medical VLMs Adaptation without Balanced Sets or Validation; and Full Conformal
Adaptation of Medical Vision-Language Models)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from handful.backbones import Backbone
from handful.balance import effective_number, whole_weights
from handful.errors import check_number, unexpected
from handful.estimator import FewShotClassifier, Learned, Task, Validation
from handful.heads import LARGEST, CosineHead
from handful.search import best_blend
from handful.selection import choose, shot_folds
from handful.types import Selection, Templates

FORMS = ("shrunk", "plain", "plus")
KAPPAS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0)
"""Where a search for kappa looks."""
LEAST = 1e-3
"""Of the published weight of the text."""


@dataclass(frozen=True)
class Totals:
    """The sum of each class's features `[C, E]`, and the number or the weights of its images `[C]`."""

    sums: Tensor
    counts: Tensor

    @classmethod
    def of(cls, x: Tensor, labels: Tensor, classes: int, weights: Tensor | None = None) -> Totals:
        """Add up features `[N, E]`, each as often as it weighs."""
        weights = x.new_ones(len(x)) if weights is None else weights.to(x)
        sums = x.new_zeros(classes, x.shape[1]).index_add_(0, labels, weights[:, None] * x)
        return cls(sums, x.new_zeros(classes).index_add_(0, labels, weights))

    @property
    def means(self) -> Tensor:
        """Of each class's features, `[C, E]`; of a class without any the mean of the others'."""
        present, means = self.counts > 0, self.sums / self.counts.clamp(min=1e-12)[:, None]
        return torch.where(present[:, None], means, means[present].mean(0)) if bool(present.any()) else means


def plain(text: Tensor, totals: Totals, scale: float) -> Tensor:
    """SS-Text: `t_k + s / (n lam) sum x`, `lam = max(1 / n, 0.001)`; raw text and image features, `[C,
    E]`."""
    n = float(totals.counts.sum())
    return text + scale / max(1.0, n * LEAST) * totals.sums


def plus(text: Tensor, totals: Totals, scale: float) -> Tensor:
    """SS-Text+: the same with `lam_k = max(1 / n_k, 0.001)`, then `w_k - norm(2 w_k - mean_j w_j)`, `[C,
    E]`."""
    share = 1 / (totals.counts.sum().clamp(min=1) * (1 / totals.counts).clamp(min=LEAST))
    weight = text + scale * share[:, None] * totals.sums
    return weight - F.normalize(2 * weight - weight.mean(0), dim=-1)


def shrunk(text: Tensor, totals: Totals, kappa: float, balance: bool) -> Tensor:
    """`(kappa t_k + n_k m_k) / (kappa + n_k)` of unit text and image features, `[C, E]`.

    With `balance` n is the harmonic mean of all classes' numbers.
    """
    some = max(int((totals.counts > 0).sum()), 1)
    counts = totals.counts[:, None]
    if balance:
        counts = torch.full_like(
            counts, effective_number(totals.counts) / some if len(totals.counts) else 0.0
        )
    return (kappa * text + counts * totals.means) / (kappa + counts)


class SSText(FewShotClassifier):
    """Class weights that are a mean of the name and the images: no training, and one number to choose.

        shrunk:  w_k = (kappa t_k + n_k m_k) / (kappa + n_k)          unit t_k, m_k the mean of unit features
        plain:   w_k = t_k + s / (n lam) sum_k x                      lam = max(1 / n, 0.001), raw t_k and x
        plus:    w_k = t_k + s / (n lam_k) sum_k x, then              lam_k = max(1 / n_k, 0.001)
                 w_k - norm(2 w_k - mean_j w_j)

    and `logits = s norm(f) . norm(w_k)`. The last two are published as SS-Text and SS-Text+, for a few
    medical classes: the share of the text depends on the number of classes and images. Up to 1,000 images the
    plain form is a nearest class mean in all but name, and SS-Text+ with 100 classes and more and one image
    of each subtracts nearly all that there is. So the default is `shrunk`: a name counts as kappa images,
    however many classes there are.

    Parameters
    ----------
    backbone
        A backbone, or the name of one.
    kappa
        How many images a name is worth, in the form `shrunk`.
    form
        `"shrunk"`, `"plain"` or `"plus"`.
    selection
        How kappa is chosen; the published forms have nothing to choose. `"support"`, the default: leaving out
        one shot of every class at a time, by the cross-entropy at the best temperature; as given where a
        class has one image. `"fixed"`: as given. `"val"` and `"oracle"`: the accuracy on `fit(...,
        validation=)`; the largest best kappa.
    templates
        Of the text classifier; of several, the published forms take the mean of raw features.
    views
        Augmented views of each image, whose mean is its feature; 0 takes the image itself.
    seed
        Of the views.
    balance
        Whether classes count alike where they have unequal numbers of images: n is the harmonic mean for all
        in `shrunk`, images are weighted in the published forms, and kappa is chosen by the mean over classes.
        False is as published: a class with more images is more of its images, whose cosines are larger than
        those of names.
    class_names
        Names of the classes, for labels that scikit-learn encodes as integers; see `fit`.
    """

    method: ClassVar[str] = "ss-text"

    def __init__(
        self,
        backbone: Backbone | str | None = None,
        *,
        kappa: float = 10.0,
        form: Literal["shrunk", "plain", "plus"] = "shrunk",
        selection: Selection = "support",
        templates: Templates = "default",
        views: int = 0,
        seed: int = 0,
        balance: bool = True,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.backbone, self.kappa, self.form, self.selection = backbone, kappa, form, selection
        self.templates, self.views, self.seed, self.balance = templates, views, seed, balance
        self.class_names = class_names

    def learn(self, task: Task) -> Learned:
        """Make the class weights; choose kappa if asked."""
        kappa = check_number("kappa", self.kappa, 0, above=True)
        if self.form not in FORMS:
            raise unexpected("form", self.form, f"one of {list(FORMS)}")
        if kappa > LARGEST:
            raise unexpected("kappa", kappa, f"a number up to {LARGEST:g}")
        if self.form != "shrunk":
            return Learned(CosineHead(F.normalize(self.published(task), dim=-1), task.scale))
        x, text, balance = F.normalize(task.features.pooled(), dim=-1), task.class_weights, self.balances()

        def search(seen: Validation | None) -> float:
            if seen is None:
                return search_inside(task, x, balance)
            totals = Totals.of(x, task.labels, len(text))
            scores = [
                seen.accuracy(CosineHead(F.normalize(shrunk(text, totals, value, balance), dim=-1), 1.0).read)
                for value in reversed(KAPPAS)
            ]
            return KAPPAS[::-1][scores.index(max(scores))]

        choice = choose(self.selection, task, lambda: kappa, search, "kappa")
        weights = shrunk(text, Totals.of(x, task.labels, len(text)), choice.value, balance)
        head = CosineHead(F.normalize(weights, dim=-1), task.scale)
        return Learned(head, choice.selection, {"kappa": choice.value}, choice.notes)

    def published(self, task: Task) -> Tensor:
        """Give the class weights of a published form, `[C, E]`, not normalised."""
        raw, text = task.features.pooled().double(), task.text_features.means().double()
        totals = Totals.of(raw, task.labels, len(text), task.weights)
        return {"plain": plain, "plus": plus}[self.form](text, totals, task.scale).float()


def search_inside(task: Task, x: Tensor, balance: bool) -> float:
    """Choose kappa for unit features `[N, E]`, leaving out one shot of every class at a time."""
    text, labels, folds = task.class_weights, task.labels, shot_folds(task.labels)
    held = folds >= 0
    logits = x.new_zeros(len(KAPPAS), len(x), len(text))
    for fold in folds[held].unique():
        out = folds == fold
        rest = Totals.of(x[~out], labels[~out], len(text))
        for row, kappa in enumerate(KAPPAS):
            logits[row, out] = x[out] @ F.normalize(shrunk(text, rest, kappa, balance), dim=-1).T
    weights, nothing = whole_weights(labels, balance)[held], torch.zeros_like(logits[0, held])
    losses = [best_blend(one[held], nothing, labels[held], weights)[1] for one in logits]
    return KAPPAS[losses.index(min(losses))]

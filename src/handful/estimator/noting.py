"""What a support set says of itself at `fit`: few images, unequal classes, names that say nothing."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from handful.balance import effective_number
from handful.estimator.method import Method
from handful.estimator.task import Task
from handful.features import Features
from handful.prompts import class_weights as encode_names
from handful.search import by_class

FEW = 4
"""Images of a class below which a note says so. Over 12 draws of the demo's digits the recall of a class
spreads by 6 to 20 points at 1 to 3 images, by 5 to 6 at 4, by 2 to 3 at 16 (linear and logistic probe)."""
UNEQUAL = 1.5
"""Largest class over smallest from which on a note says so; below, it changes next to nothing."""
LEVEL = 0.01
"""Below this p-value zero-shot is better than chance."""
POOR = 0.05
"""Below this probability zero-shot is not half-way from chance to faultless, however few the images."""
MOST_A_CLASS, MOST = 16, 4000
"""Images that the test of the names looks at."""
MATCHINGS = 999
"""Random matchings of names with classes."""
FEWEST = 8
"""Classes from which on names are also tested against other matchings: fewer match by luck too often."""


@dataclass(frozen=True)
class NamesTest:
    """How zero-shot does on the support set.

    Attributes
    ----------
    accuracy, chance
        Mean over classes, and what names that say nothing have on average, `1 / C`.
    p_value
        Of zero-shot being no better than chance; small where names say something.
    poor
        Of zero-shot being half-way from chance to faultless: small where few images rule out as much.
    """

    accuracy: float
    chance: float
    p_value: float
    poor: float

    @property
    def say_nothing(self) -> bool:
        """Whether zero-shot is no better than chance, on images enough to see that it would be."""
        return self.poor < POOR and not self.p_value < LEVEL


@torch.no_grad()
def check_names_say_something(features: Tensor, class_weights: Tensor, labels: Tensor) -> NamesTest:
    """Test the names on a support set, at most 16 images of each class: a p-value below 0.01 is that they do.

    Zero-shot's accuracy on the support set, the mean over classes, against `1 / C`: a binomial test whose
    number of images is `C^2 / sum_c 1 / n_c`, what equal classes of as certain a mean would have. From 8
    classes on also against other matchings of names with classes, since images of a class are right or wrong
    together: the larger p-value.

    Parameters
    ----------
    features
        `[N, E]`, at any length.
    class_weights
        The text classifier `[C, E]`, rows of unit norm.
    labels
        `[N]` int64.
    """
    classes = len(class_weights)
    index = by_class(labels, classes)[:, : max(min(MOST_A_CLASS, MOST // classes), 1)]
    rows = index[index >= 0]
    predicted = (F.normalize(features[rows], dim=-1) @ class_weights.T).argmax(1)
    return names_test(predicted, labels[rows], classes)


def names_test(predicted: Tensor, labels: Tensor, classes: int) -> NamesTest:
    """Test the names by what zero-shot predicts `[N]` for images of some labels `[N]`, rows of C classes."""
    counts = torch.bincount(labels, minlength=classes)
    present = counts > 0
    confusion = torch.zeros(classes, classes, dtype=torch.float64)  # shares of each class
    confusion.index_put_((labels, predicted), 1 / counts[labels].double(), accumulate=True)
    confusion = confusion[present]
    own = torch.nonzero(present)[:, 0]
    accuracy = float(confusion[torch.arange(len(own)), own].mean())
    images = round(effective_number(counts))
    right, chance = round(accuracy * images), 1 / classes
    better = _at_least(right, images, chance)
    if classes >= FEWEST:
        better = max(better, _matching_p_value(confusion, own, accuracy))
    return NamesTest(accuracy, chance, better, 1 - _at_least(right + 1, images, (1 + chance) / 2))


def _at_least(right: int, images: int, chance: float) -> float:
    """Probability of that many right answers or more, each right by a chance."""
    if right <= 0:
        return 1.0
    many = torch.arange(right, images + 1, dtype=torch.float64)
    if not len(many) or chance >= 1:
        return float(chance >= 1)
    total = math.lgamma(images + 1)
    ways = total - torch.lgamma(many + 1) - torch.lgamma(images - many + 1)
    return min(float((ways + many * math.log(chance) + (images - many) * math.log1p(-chance)).exp().sum()), 1)


def _matching_p_value(confusion: Tensor, own: Tensor, accuracy: float) -> float:
    """Share of the matchings of names with classes, this one among them, that are right as often or more."""
    classes = confusion.shape[1]
    names = torch.rand(MATCHINGS, classes, generator=torch.Generator().manual_seed(0)).argsort(1)[:, own]
    others = confusion[torch.arange(len(own)), names].mean(1)
    return (1 + int((others >= accuracy - 1e-9).sum())) / (1 + MATCHINGS)


def look_like_codes(names: Sequence[str]) -> bool:
    """Whether more than half of some names are numbers, ids or hashes: n01440764, 0042, SKU-117, a3f09c21.

    What all names start with, as in class_1 and class_2, says nothing.
    """
    first, last = min(names), max(names)
    same = (one == other for one, other in zip(first, last, strict=False))
    shared = sum(itertools.takewhile(bool, same)) if first != last else 0
    return sum(_looks_like_a_code(name, name[shared:]) for name in names) > len(names) / 2


def _looks_like_a_code(name: str, own: str) -> bool:
    """Whether a name holds a digit and no word: no three letters together, and none beyond Latin ones."""
    if not re.search(r"\d", name):
        return False
    if re.fullmatch(r"[0-9a-f][0-9a-f_-]{6,}[0-9a-f]", name.casefold()):
        return True
    return not re.search(r"[^\W\d_]{3,}|[^\x00-\u024f\W\d_]", own)


def support_notes(method: Method, task: Task, text_given: bool) -> tuple[str, ...]:
    """Give what the user should know of a support set, a sentence or two each.

    Parameters
    ----------
    method, task
        What is fitted, and to what.
    text_given
        Whether class weights were given, in place of the names.
    """
    if not task.has("inputs") or not len(task.labels):
        return ()
    counts = torch.bincount(task.labels, minlength=len(task.class_names)).tolist()
    by_counts = counts_notes(method, task.class_names, counts) if method.uses_images else ()
    return (*by_counts, *names_notes(method, task, text_given))


def counts_notes(method: Method, names: Sequence[str], counts: Sequence[int]) -> tuple[str, ...]:
    """Say where a class has few images, and where classes are unequal."""
    notes, most = list[str](), max(counts)
    some = min(count for count in counts if count)
    if most >= UNEQUAL * some:
        what = f"Classes have {some} to {most} images"
        if not hasattr(method, "balance"):
            notes.append(f"{what}.")
        elif method.balances():
            notes.append(f"{what}, and count alike: see the parameter balance.")
        else:
            notes.append(f"{what}, and large classes count more: balance=False was asked for.")
    notes += few_notes(names, counts)
    return tuple(notes)


def few_notes(names: Sequence[str], counts: Sequence[int]) -> list[str]:
    """Say where a class has few images."""
    few = [f"{name!r} ({count})" for name, count in zip(names, counts, strict=True) if count < FEW]
    if not few:
        return []
    least, more = min(counts), f" and {len(few) - 5} more classes" if len(few) > 5 else ""
    who = f"({least} of every class)" if least == max(counts) else f"of {', '.join(few[:5])}{more}"
    return [
        f"Few images {who}: with fewer than {FEW}, how well a class is recognised depends on which images "
        "these are. Add some, or measure it on others: handful evaluate."
    ]


def names_notes(method: Method, task: Task, text_given: bool) -> tuple[str, ...]:
    """Say where the names that a method reads say nothing of the images, as far as features are at hand."""
    inputs = task.inputs
    if not method.uses_text or not isinstance(inputs, Features) or len(task.class_names) < 2:
        return ()
    if task.has("class_weights"):
        text = task.class_weights
    else:  # a method inside the text tower: one pass, of which its training makes hundreds
        text = encode_names(task.backbone, task.class_names, "default").cpu()
    found = check_names_say_something(inputs.pooled(), text, task.labels)
    codes, better = not text_given and look_like_codes(task.class_names), found.p_value < LEVEL
    doubtful = found.accuracy < (1 + found.chance) / 2 and (not better or len(task.class_names) < FEWEST)
    if not found.say_nothing and not (codes and doubtful):
        return ()
    scored = (
        f"{100 * found.accuracy:.0f} % on the support images, where chance has {100 * found.chance:.0f} %"
    )
    if text_given:
        return (f"Zero-shot by the class weights given has {scored}: they say nothing of these images.",)
    shown = ", ".join(map(repr, task.class_names[:2]))
    said = f"The class names ({shown}, ...) {'look like codes' if codes else 'say nothing to this backbone'}"
    mend = "Rename folders or labels to say what the images show"
    if method.trusts_names:
        mend += ", or take a method that images decide: linear-probe, logistic-probe"
    return (f"{said}: zero-shot by them has {scored}. {mend}.",)

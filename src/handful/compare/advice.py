"""Which method to take, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from handful.compare.estimates import estimate
from handful.estimator.noting import UNEQUAL, NamesTest, few_notes

ZERO_SHOT = "zero-shot"
SURE = 0.9
"""A probability from which on no doubt is mentioned."""


@dataclass(frozen=True)
class Rank:
    """How a method did on images that it was not fitted on; accuracies are 0 to 1.

    Attributes
    ----------
    balanced_accuracy, error
        Mean over the classes of each one's accuracy, which methods are ranked by; and half of its 95 %
        interval, over images and over draws of them.
    accuracy
        Share of images that were right, in which large classes count more.
    gain, gain_error
        Of balanced accuracy over zero-shot, image by image, and half of its 95 % interval.
    better
        Probability that it is better than zero-shot.
    as_good
        Probability that it is at least as good as the first in the ranking.
    selection
        How its hyper-parameters were chosen, inside each fold.
    seconds
        A fit takes, in the median.
    """

    method: str
    balanced_accuracy: float
    error: float
    accuracy: float
    gain: float
    gain_error: float
    better: float
    as_good: float
    selection: str
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """Methods, the best first, and what to do.

    Attributes
    ----------
    ranks
        All methods, by balanced accuracy.
    best
        The one to take.
    advice, notes
        What to do, in a sentence or two; and what to know of the images.
    images, classes, smallest, largest
        How many there are, and the images of the smallest and of the largest class.
    repeats, folds
        Of the cross-validation.
    """

    ranks: list[Rank]
    best: str
    advice: str
    notes: tuple[str, ...]
    images: int
    classes: int
    smallest: int
    largest: int
    repeats: int
    folds: int


def rank(
    right: Mapping[str, NDArray[np.float64]],
    labels: NDArray[np.int64],
    selection: Mapping[str, str],
    seconds: Mapping[str, float],
) -> list[Rank]:
    """Order methods by balanced accuracy; of equal ones zero-shot comes first, then the faster.

    Parameters
    ----------
    right
        By method, the share of its answers that were right, for each held-out image `[N]`.
    labels
        `[N]`.
    selection, seconds
        By method, as a `Rank` has them.
    """
    own = {name: estimate(values, labels) for name, values in right.items()}
    order = sorted(own, key=lambda name: (-own[name].mean, name != ZERO_SHOT, seconds[name]))
    found = []
    for name in order:
        gain = estimate(right[name] - right[ZERO_SHOT], labels)
        to_first = estimate(right[name] - right[order[0]], labels)
        found.append(
            Rank(
                method=name,
                balanced_accuracy=own[name].mean,
                error=own[name].half,
                accuracy=float(right[name].mean()),
                gain=gain.mean,
                gain_error=gain.half,
                better=gain.positive if name != ZERO_SHOT else 0.0,
                as_good=to_first.positive if name != order[0] else 1.0,
                selection=selection[name],
                seconds=seconds[name],
            )
        )
    return found


def choose(ranks: Sequence[Rank], unfit: Sequence[str] = ()) -> Rank:
    """Give the method whose expected loss is least: the first, whatever the doubt.

    Parameters
    ----------
    ranks
        The best first.
    unfit
        Methods not to take if there is another: those that trust class names, where these say nothing.
    """
    return next((one for one in ranks if one.method not in unfit), ranks[0])


def advise(best: Rank, ranks: Sequence[Rank]) -> str:
    """Say in a sentence or two what to do, and how sure it is."""
    zero = next(one for one in ranks if one.method == ZERO_SHOT)
    others = [one for one in ranks if one.method not in (ZERO_SHOT, best.method)]
    if best.method == ZERO_SHOT:
        return _advise_zero_shot(zero, others)
    shown = f"{best.method} is best: {_shown(best)} in the mean over classes, zero-shot {_percent(zero)} %."
    gain = f"The gain is {100 * best.gain:.1f} ± {100 * best.gain_error:.1f} points"
    if best.better >= SURE:
        text = f"{shown} {gain}."
    else:
        text = (
            f"{shown} {gain}: it is better with a probability of {100 * best.better:.0f} %. More images "
            "would make it surer; with these, take it."
        )
    alike = [one.method for one in others if one.as_good > 1 - SURE and one.better > 0.5]
    return f"{text} The difference to {_listed(alike)} is within noise." if alike else text


def _advise_zero_shot(zero: Rank, others: Sequence[Rank]) -> str:
    """Say that nothing is better, and how sure that is."""
    shown = f"zero-shot has {_shown(zero)} in the mean over classes"
    if not others:
        return f"Adaptation does not help here: {shown}, and nothing is better."
    next_best = others[0]
    surely = next_best.better <= 1 - SURE
    return (
        f"Adaptation {'does not help' if surely else 'is not likely to help'} here: {shown}, and "
        f"{next_best.method}, the best of the others, {_percent(next_best)} %: it is better with a "
        f"probability of {100 * next_best.better:.0f} %."
    )


def notes_on(sizes: NDArray[np.int64], classes: Sequence[str], names: NamesTest) -> tuple[str, ...]:
    """Say what to know of the images of each class `[C]`, and of what the class names say."""
    found = []
    if names.say_nothing:
        found.append(
            f"The class names say nothing of these images: zero-shot has {100 * names.accuracy:.0f} %, where "
            f"chance has {100 * names.chance:.0f} %. No method that trusts names is advised; names that say "
            "what the images show would help them all."
        )
    if alone := np.flatnonzero(sizes < 2).tolist():
        found.append(
            f"One image of {_listed([classes[row] for row in alone[:5]])}"
            f"{' and others' if alone[5:] else ''}: learned, and not measured."
        )
    if sizes.max() >= UNEQUAL * sizes.min():
        found.append(
            f"Classes have {sizes.min()} to {sizes.max()} images: each class counts alike, not each image."
        )
    found += few_notes(classes, sizes.tolist())
    return tuple(found)


def _percent(one: Rank) -> str:
    return f"{100 * one.balanced_accuracy:.1f}"


def _shown(one: Rank) -> str:
    return f"{_percent(one)} ± {100 * one.error:.1f} %"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"

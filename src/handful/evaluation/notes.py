"""What to know of an evaluation's figures, a sentence each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from handful.evaluation.measures import BY_FAMILIARITY, ClassScore, Seen, Sets, Unknown
from handful.metrics import Beside

FEW = 10
"""Test images of a class below which a note says that its figures are rough: with ten images the 95 %
interval of an accuracy of 80 % goes from 49 to 94 %."""
MOST_NAMED = 5


def notes_on(
    scores: Sequence[ClassScore],
    classes: int,
    seen: Seen | None,
    unknown: Unknown | None,
    left_out: Mapping[str, int],
    balanced: Beside,
    sets: Sets | None = None,
) -> tuple[str, ...]:
    """Say what to know of the figures; what makes them worthless first."""
    found = [
        _seen(seen), _worse(balanced), _unknown(unknown), _sets(sets), _left_out(left_out),
        _absent(scores, classes), _few(scores),
    ]  # fmt: skip
    return tuple(note for note in found if note)


def _seen(seen: Seen | None) -> str:
    if seen is None or not seen.images:
        return ""
    what = [(seen.support, "it learned from"), (seen.validation, "its hyper-parameters were chosen on")]
    parts = [f"{count} that {how}" for count, how in what if count]
    text = (
        f"The classifier has seen {seen.images} of these {seen.images + seen.others} images: "
        f"{' and '.join(parts)}. "
    )
    if seen.accuracy_on_others is None:
        return text + "These figures say nothing of new images: measure on images that were kept apart."
    return text + f"On the {seen.others} others its accuracy is {100 * seen.accuracy_on_others:.2f} %."


def _worse(balanced: Beside) -> str:
    if balanced.gain_interval[1] >= 0:
        return ""
    return "Zero-shot, which needs no image, is better here than the classifier, on the mean over classes."


def _unknown(unknown: Unknown | None) -> str:
    if unknown is None or unknown.rule != BY_FAMILIARITY or unknown.threshold > -1:
        return ""
    return (
        "The classifier was calibrated on too few images to call any image unknown at the stated rate: "
        "calibrate on more, or with a higher rate."
    )


def _sets(sets: Sets | None) -> str:
    if sets is None or sets.balanced_coverage_interval[1] >= sets.stated:
        return ""
    return (
        f"Sets hold the class of {100 * sets.balanced_coverage:.1f} % of these images, fewer than the stated "
        f"{100 * sets.stated:g} %, and not by chance: the images differ from the support set. "
        "Calibrate on some like these."
    )


def _left_out(left_out: Mapping[str, int]) -> str:
    if not left_out:
        return ""
    images = _count(sum(left_out.values()), "image is", "images are")
    which = _listed([f"{name} {count}" for name, count in left_out.items()])
    return f"{images} left out, of classes that the classifier does not know: {which}."


def _absent(scores: Sequence[ClassScore], classes: int) -> str:
    missing = classes - len(scores)
    if not missing:
        return ""
    return f"{missing} of {classes} classes have no test image: the figures are of the other {len(scores)}."


def _few(scores: Sequence[ClassScore]) -> str:
    few = sorted((one for one in scores if one.images < FEW), key=lambda one: one.images)
    if not few:
        return ""
    which = _listed([f"{one.name} {one.images}" for one in few])
    having = _count(len(few), "class has", "classes have")
    return f"{having} fewer than {FEW} test images, too few for exact figures: {which}."


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - MOST_NAMED} more" if len(items) > MOST_NAMED else ""
    return ", ".join(items[:MOST_NAMED]) + more

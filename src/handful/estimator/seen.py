"""Which images a fit has looked at: short digests of them, so that who evaluates on one is told.

A digest is of an image file's bytes, or of the pixels of an image in memory. The same picture saved again,
in another format or size, has another one and is not found.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from handful.errors import CheckpointError
from handful.estimator.task import Source
from handful.selection import Validation
from handful.types import Selection

Digests: TypeAlias = Mapping[str, Sequence[str]]
"""By `SUPPORT` and `VALIDATION`, a digest of each image; "" for one that is unknown."""
SUPPORT, VALIDATION = "support", "validation"
LENGTH = 16
"""Hexadecimal digits that are kept of a SHA-256: two different images agree by chance in 1 of 2^64 pairs."""
MOST = 1_000_000
"""Images of which digests are kept: about 20 MB of `head.json`. Of more, none are."""


def shorten(digests: Iterable[str]) -> tuple[str, ...]:
    """Give the part of each digest that is kept."""
    return tuple(digest[:LENGTH] for digest in digests)


def keep(support: Iterable[str], validation: Iterable[str] = ()) -> Digests:
    """Give what is kept of the digests of a support set, and of images that parameters were chosen on."""
    found = {SUPPORT: shorten(support), VALIDATION: shorten(validation)}
    return {name: kept for name, kept in found.items() if any(kept) and len(kept) <= MOST}


def of_fit(inputs: Source | None, held_out: Validation | None, selection: Selection) -> Digests:
    """Give what is kept of the images that a fit has looked at.

    Parameters
    ----------
    inputs
        The support set, where the method learns from it.
    held_out, selection
        Validation images, and how hyper-parameters were chosen: on these, or without them.
    """
    chosen_on = held_out.digests if held_out and selection in ("val", "oracle") else ()
    return keep(inputs.digests if inputs is not None else (), chosen_on)


def check_digests(facts: Mapping[str, object]) -> None:
    """Refuse digests that are damaged.

    Raises
    ------
    CheckpointError
        They are no lists of texts.
    """
    for name, kept in facts.items():
        if not isinstance(kept, list | tuple) or not all(isinstance(one, str) for one in kept):
            raise CheckpointError(f"Expected digests of {name!r} to be a list of texts, got {kept!r:.80}.")

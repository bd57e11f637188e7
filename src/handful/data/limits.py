"""How large an image may be: one setting for all that reads images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

from handful.errors import check_number, unexpected

MEGAPIXELS = "HANDFUL_MEGAPIXELS"
"""Of the environment, so that processes that are started have it too: million pixels of an image, at most."""
MAX_PIXELS = 64_000_000
"""Where that is not set."""
MAX_BYTES = 2**30
"""Of a file."""


def most_pixels() -> int:
    """Give how many pixels an image may have: `$HANDFUL_MEGAPIXELS` million, 64 million where it is not set.

    Raises
    ------
    ParameterError
        It is no number above 0.
    """
    given = os.environ.get(MEGAPIXELS, "")
    if not given:
        return MAX_PIXELS
    try:
        return max(1, int(1e6 * check_number(MEGAPIXELS, float(given), 0, above=True)))
    except ValueError as error:
        raise unexpected(MEGAPIXELS, given, "millions of pixels, a number above 0") from error


def lift_pillow(most: int) -> int:
    """Lift Pillow's own limit, which is one for the process, if more is asked for; give the number back."""
    if most > MAX_PIXELS and Image.MAX_IMAGE_PIXELS is not None and most > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = most
    return most


@contextmanager
def megapixels(most: float | None) -> Iterator[None]:
    """Allow images of so many million pixels inside; None leaves what is allowed."""
    before = os.environ.get(MEGAPIXELS)
    if most is not None:
        os.environ[MEGAPIXELS] = repr(most)
    try:
        yield
    finally:
        os.environ.pop(MEGAPIXELS, None)
        if before is not None:
            os.environ[MEGAPIXELS] = before


def too_many(most: int) -> str:
    """Say that an image has more pixels than are allowed, and what to do."""
    return f"more pixels than the {most / 1e6:g} million allowed: --megapixels, or {MEGAPIXELS}, allows more"

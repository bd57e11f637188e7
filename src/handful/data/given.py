"""Images as people give them, one or several: the one reading of what `fit`, `predict` and `encode` take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from handful.data.items import is_array, is_one, settle
from handful.data.sets import ImageSet
from handful.errors import DataError, unexpected
from handful.types import ImageLike

FEWEST_ROWS = 8
"""Of a grey picture among several floating-point ones: fewer are taken for features in views. Of any picture
among several, columns: fewer are taken for channels."""
FORMS = "a path, a PIL image, an array, the bytes of a file, an open file, several of them, or an ImageSet"


def as_items(images: Any) -> Iterable[ImageLike]:
    """Give images one by one: one alone, several, an array of several, or an `ImageSet`.

    An iterator stays one, to be read as it comes; of anything else this is a tuple. Open files are read.

    Raises
    ------
    ParameterError
        It holds no images.
    DataError
        It is an array that is neither one image nor several.
    """
    if is_one(images):
        return (settle(images),)
    if isinstance(images, ImageSet):
        return tuple(map(settle, images.items))
    if is_array(images) and not _holds_images(images):
        raise DataError(
            f"Got an array of dtype {images.dtype} and shape {list(images.shape)}, expected one image, "
            "[H, W], [H, W, C] or [C, H, W] with 1, 3 or 4 channels, or several: [N, H, W], [N, H, W, C] or "
            "[N, C, H, W]. Features are floats [N, E], or handful.Features.from_array(...)."
        )
    if isinstance(images, dict) or not isinstance(images, Iterable):
        raise unexpected("images", images, FORMS)
    return map(settle, images) if isinstance(images, Iterator) else tuple(map(settle, images))


def count_items(images: Any) -> int | None:
    """Count images; None where that can't be known without reading them."""
    if is_one(images) and not (is_array(images) and images.ndim == 2):  # which may be features
        return 1
    return len(images) if hasattr(images, "__len__") else None


def _holds_images(images: Any) -> bool:
    """Whether an array that is no image holds several: of pixels, or of paths and other objects."""
    floating = getattr(images.dtype, "is_floating_point", getattr(images.dtype, "kind", "") == "f")
    if images.ndim == 1:
        return getattr(images.dtype, "kind", "") in ("O", "U", "S", "T")
    if images.ndim == 3:
        return images.shape[2] >= FEWEST_ROWS and (not floating or images.shape[1] >= FEWEST_ROWS)
    return images.ndim == 4 and (images.shape[-1] in (1, 3, 4) or images.shape[1] in (1, 3, 4))

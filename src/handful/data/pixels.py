"""Pixels of any kind to RGB of 8 bits: levels beyond 8 bits, layouts of arrays, transparency, rotation.

The rule for levels beyond 8 bits is `to_bytes`. On 599 of scikit-learn's digits, zero-shot with `mini` is
right on 77 %; squeezed into a share of 0.5, 0.4, 0.25, 0.12 and 0.06 of the range, dark, on 77, 76, 66, 36
and 10 %, and stretched again on 77 % even from 8 levels. So a picture that fills 0.4 of its range stays as
it is, and any other is stretched.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from handful.errors import DataError

RANGES = (1.0, 255.0, 65535.0)
"""Where the ranges end, from 0, that levels are written in: floats, 8 bits and 16."""
SHARE = 0.4
"""Of its range, what a picture must fill to be scaled by it."""
TAILS = (0.5, 99.5)
"""Percentiles of the levels that a picture is stretched between (those of Isensee et al. 2021, for CT): a
dead or hot pixel, or a burned-in mark, does not take the contrast from all others."""
GRID = 1000
"""Percentiles are of at most about so many rows and columns."""
FLAT = 16
"""Levels of 256: a picture whose pixels all lie closer together is named. On digits of 16 levels, zero-shot
is at chance."""

DEEP = "more than 8 bits a channel"
"""Among what Pillow keeps of an image, its `info`."""

Array: TypeAlias = NDArray[Any]


@np.errstate(over="ignore", invalid="ignore")
def to_bytes(levels: Array) -> NDArray[np.uint8]:
    """Scale levels beyond 8 bits, `[H, W]` or `[H, W, C]`, to 0..255, so that contrast is kept.

    1. Floats that are all whole 255ths, from 0 to 1, are an 8-bit picture, and become it again.
    2. Else `low` and `high` are the percentiles `TAILS` of all levels together, or, where these are equal,
       the smallest and the largest level. The range of the picture is the first of `RANGES` (the first one
       for floats only) that holds both, from 0.
    3. If the picture fills `SHARE` of that range, or is all of one level, it is scaled from that range; else
       from `low`..`high`. What lies outside is clipped.

    So a picture that fills its range keeps its brightness; of any other only the contrast is kept, and two
    pictures of one camera are no longer equally bright: where the level itself is the message (a
    temperature, a Hounsfield unit), scale to 8 bits yourself, all by the same two levels.

    Raises
    ------
    ValueError
        A level is NaN or infinite.
    """
    numbers = np.asarray(levels, dtype=np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError("pixels that are NaN or infinite")
    fractional = levels.dtype.kind == "f"
    if fractional and is_of_bytes(levels):
        return np.rint(numbers * 255).astype(np.uint8)
    step = max(numbers.shape[:2]) // GRID + 1
    low, high = np.percentile(numbers[::step, ::step], TAILS)
    if low == high:
        low, high = numbers.min(), numbers.max()
    top = next((top for top in RANGES[not fractional :] if low >= 0 and high <= top), 0.0)
    if low == high or (top and high - low >= SHARE * top):
        low, high = 0.0, top or RANGES[-1]
    scaled = np.clip((numbers - low) / (high - low) * 255 + 0.5, 0, 255)
    if not np.isfinite(scaled).all():
        raise ValueError("pixels that lie further apart than any number")
    return scaled.astype(np.uint8)


@np.errstate(over="ignore", invalid="ignore")
def is_of_bytes(levels: Array) -> bool:
    """Whether floats are whole 255ths from 0 to 1, as ToTensor leaves them, in half precision too."""
    scaled = levels.astype(np.float64) * 255
    return bool(scaled.min() >= 0 and scaled.max() <= 255 and np.abs(scaled - np.rint(scaled)).max() < 0.1)


def is_deep(image: Image.Image) -> bool:
    """Whether an image has more than 8 bits a channel; of one in colour, ask before its pixels are loaded.

    The answer is kept in the image's `info`, for Pillow forgets what it read of colours.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return True
    if any(re.search(r";16[BLN]\b", str(tile[3])) for tile in getattr(image, "tile", [])):
        image.info[DEEP] = True
    return DEEP in image.info


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn any Pillow mode into upright RGB on white.

    Of colours beyond 8 bits a channel, Pillow reads the upper 8; `to_bytes` then scales these.
    """
    deep = is_deep(image)
    unsigned = hasattr(image, "tag_v2") and image.tag_v2.get(339, (1,)) == (1,)  # TIFF's SampleFormat
    image.load()
    with suppress(Exception):  # EXIF that can't be read leaves the pixels as they are
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        levels = np.asarray(image)
        levels = levels.view(np.uint32) if image.mode == "I" and unsigned else levels
        grey = Image.fromarray(to_bytes(levels)).convert("RGB")
        clear = image.info.get("transparency")
        if isinstance(clear, int):  # one level of a PNG
            grey.paste((255, 255, 255), None, Image.fromarray(levels == clear))
        return grey
    if image.mode == "LAB":
        from PIL import ImageCms  # some builds of Pillow lack it

        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB") or image
    if image.mode == "La":
        image = image.convert("LA")
    clear = image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info
    image = image.convert("RGBA" if clear else "RGB")
    if deep:
        colours = np.array(image)
        colours[..., :3] = to_bytes(colours[..., :3])
        image = Image.fromarray(colours)
    return on_white(image) if clear else image


def on_white(image: Image.Image) -> Image.Image:
    """Lay an RGBA image on white."""
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def spread(image: Image.Image) -> int:
    """Give how far apart the levels of an RGB image lie, 0 to 255: of the channel where they do most."""
    small = image.resize((min(image.width, 256), min(image.height, 256)), Image.Resampling.NEAREST)
    return max(high - low for low, high in small.getextrema())  # type: ignore[misc]


# -- arrays ---------------------------------------------------------------------------------------


def as_array(item: Any) -> Array:
    """Give a NumPy array, or PyTorch's tensor on any device, as a NumPy array."""
    if hasattr(item, "detach"):
        item = item.detach().cpu()
        item = item.float() if "bfloat16" in str(item.dtype) else item
    return np.asarray(item)


def one_image(shape: tuple[int, ...], channels_first: bool) -> str:
    """Give the layout of an array that is one image: `"HW"`, `"HWC"` or `"CHW"`; `""` for any other.

    Parameters
    ----------
    shape
        Of the array.
    channels_first
        Whether it is a tensor of PyTorch, where `CHW` is the custom: `[4, H, W]` is one RGBA image there,
        and four grey ones else.
    """
    if len(shape) == 2:
        return "HW"
    if len(shape) != 3:
        return ""
    last, first = shape[2] in (1, 3, 4), shape[0] in ((1, 3, 4) if channels_first else (1, 3))
    if first and (channels_first or not last):
        return "CHW"
    return "HWC" if last else ""


def from_array(item: Any) -> tuple[Image.Image, bool]:
    """Make an image of an array in any layout, and say whether it has more than 8 bits a channel.

    Bytes stay as they are, True is 255, and wider numbers are scaled by `to_bytes`, all channels alike.

    Raises
    ------
    DataError
        It is none.
    """
    array = as_array(item)
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    layout = one_image(array.shape, hasattr(item, "detach"))
    if not layout or array.dtype.kind not in "buif":
        what = f"dtype {array.dtype} and shape {array.shape}" if array.ndim else f"type {type(item).__name__}"
        raise DataError(
            f"Got an image array of {what}, expected [H, W], or 1, 3 or 4 channels, [H, W, C] or [C, H, W]: "
            "bytes, integers or floats. Or give a path, a PIL image, or the bytes of an image file."
        )
    if 0 in array.shape:
        raise DataError(f"Got an image array of shape {array.shape}, expected at least one pixel.")
    array = array.transpose(1, 2, 0) if layout == "CHW" else array
    array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if array.dtype.kind == "f" and array.ndim == 3 and np.fmin.reduce(array, axis=None) < -0.5:
        raise DataError(
            f"Got an image array of colours from {np.nanmin(array):.3g} to {np.nanmax(array):.3g}, expected "
            "none below 0: it looks normalised. Give the image before that, as bytes or floats from 0 to 1."
        )
    if array.dtype == bool:
        array = array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(array)), False
    try:
        image = Image.fromarray(_with_alpha(array) if array.shape[2:] == (4,) else to_bytes(array))
    except ValueError as error:
        raise DataError(f"Got an image array that holds {error}.") from error
    return image, array.dtype.kind != "f" or not is_of_bytes(array[..., :3] if array.ndim == 3 else array)


def _with_alpha(array: Array) -> NDArray[np.uint8]:
    """Scale the colours of RGBA by `to_bytes`, and its alpha by the range that it is written in."""
    alpha = array[..., 3].astype(np.float64)
    top = next((top for top in RANGES[array.dtype.kind != "f" :] if alpha.max() <= top), alpha.max())
    alpha = np.clip(alpha / top * 255 + 0.5, 0, 255).astype(np.uint8)
    return np.dstack([to_bytes(array[..., :3]), alpha])

"""One image as people give it: a path, the bytes of a file, an open file, a PIL image, an array."""

from __future__ import annotations

import os
import re
from array import array
from typing import Any, TypeGuard

from PIL import Image

from handful.data.limits import MAX_BYTES
from handful.data.pixels import as_array, one_image
from handful.errors import DataError

LONGEST_TITLE = 4096
"""Characters of a path that an error repeats."""
ADDRESSES = {
    r"file:/": "give the path alone, without file://",
    r"data:": "give the bytes that base64.b64decode makes of what follows the comma",
    r"[a-z][a-z0-9+.-]+:/": "handful fetches no images: download it, and give the file's path or its bytes",
}
"""How texts begin that are no paths, and what to do."""


def is_file(item: object) -> TypeGuard[str | os.PathLike[str]]:
    """Whether an image is given by the path of its file."""
    return isinstance(item, str | os.PathLike)


def is_encoded_file(item: object) -> bool:
    """Whether an image is given as the bytes of its file, or as an open file."""
    if isinstance(item, bytes | bytearray | memoryview) or callable(getattr(item, "read", None)):
        return True
    if isinstance(item, array):
        return item.typecode == "B"
    return is_array(item) and item.ndim == 1 and str(item.dtype).endswith("uint8")  # type: ignore[attr-defined]


def is_array(item: object) -> bool:
    """Whether this is an array of NumPy or alike, PyTorch's tensors among them."""
    return hasattr(item, "shape") and hasattr(item, "dtype") and hasattr(item, "ndim")


def is_one(images: Any) -> bool:
    """Whether this is one image, and not several: an array by its layout, as `handful.data.decode` has it."""
    if is_file(images) or isinstance(images, Image.Image) or is_encoded_file(images):
        return True
    return is_array(images) and bool(one_image(tuple(images.shape), hasattr(images, "detach")))


def settle(item: Any) -> Any:
    """Read an open file, which may be read only once; anything else stays as it is."""
    return encoded_bytes(item) if callable(getattr(item, "read", None)) else item


def encoded_bytes(item: Any) -> bytes:
    """Give the bytes of an image file that is in memory, or open.

    An open file is read from its start, wherever it stands, and left where it stood; one that can't be
    wound back, as a response from the network, is read from where it stands.

    Raises
    ------
    DataError
        It can't be read, is too large, or was opened as text.
    """
    if not callable(getattr(item, "read", None)):
        return as_array(item).tobytes() if is_array(item) else bytes(item)
    name = repr(path_of(item)) if path_of(item) else type(item).__name__
    try:
        data = _read_open(item)
    except UnicodeDecodeError:
        data = ""
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"Got an open file, {name}, that can't be read: {error}.") from error
    if not isinstance(data, bytes | bytearray | memoryview):
        raise DataError(
            f"Got an open file, {name}, that gives {type(data).__name__}, expected bytes: open it "
            'with open(path, "rb").'
        )
    if len(data) > MAX_BYTES:
        raise DataError(f"Got an open file, {name}, of more than the {MAX_BYTES} bytes allowed.")
    return bytes(data)


def _read_open(file: Any) -> Any:
    """Read an open file from its start, and wind it back to where it stood, if it can be wound."""
    seekable = getattr(file, "seekable", None)  # a memory map of Python 3.11 has none, and can be wound
    if not (seekable() if callable(seekable) else hasattr(file, "seek") and hasattr(file, "tell")):
        return file.read(MAX_BYTES + 1)
    place = file.tell()
    file.seek(0)
    try:
        return file.read(MAX_BYTES + 1)
    finally:
        file.seek(place)


def path_of(item: object) -> str:
    """Give the path of an image, also of an open file that has one; nothing for any other."""
    if is_file(item):
        return str(item)
    name = getattr(item, "name", None) if callable(getattr(item, "read", None)) else None
    return name if isinstance(name, str) else ""


def title(item: object, row: int | None = None) -> str:
    """Name an image for people: its path, or its number among others."""
    if is_file(item):
        name = str(item)
        return name if len(name) <= LONGEST_TITLE else f"{name[:LONGEST_TITLE]}..."
    if row is not None:
        return f"image {row}"
    return "an image file in memory" if is_encoded_file(item) else "an image in memory"


def address_advice(text: str) -> str:
    """Say what to do about a text that is an address, and no path; nothing about any other."""
    found = (advice for start, advice in ADDRESSES.items() if re.match(start, text, re.IGNORECASE))
    advice = next(found, "")
    return f"an address, and no path: {advice}" if advice else ""

"""Images as people have them: opened safely, turned upright, laid on white."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from handful.errors import DataError, UnreadableImages
from handful.files import read_file
from handful.types import ImageLike

Image.preinit()  # BMP, GIF, JPEG, PPM and PNG; these and the next before threads need one
for plugin in ("Avif", "Tiff", "WebP"):
    import_module(f"PIL.{plugin}ImagePlugin")  # registers itself; all that Pillow knows would take longer
WANTED = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")  # JPEG opens MPO too
FORMATS = tuple(name for name in WANTED if name in Image.OPEN)
MAX_PIXELS = 64_000_000
MAX_ASPECT = 1_000
MAX_BYTES = 2**30
MOST_SHOWN = 12
"""Bad files that one error names."""
MOST_REMEMBERED = 100_000
"""Digests that are kept in memory."""

FileState: TypeAlias = tuple[str, int, int]
_digests: dict[FileState, str] = {}
_remembering = threading.Lock()


class Opened:
    """An image that was read once: its digest and its pixels come from the same bytes.

    Raises
    ------
    DataError
        The file can't be read, or what is in memory is no image.
    """

    def __init__(self, item: ImageLike) -> None:
        self.item = item
        self._image = None if is_file(item) else decode(item)
        self._digest, self.data = "", b""
        if is_file(item):
            state = _state(item)  # before the file is read: one that changes meanwhile is read again
            self.data = content(item)
            self._digest = hashlib.sha256(self.data).hexdigest()
            _remember(state, self._digest)

    @property
    def digest(self) -> str:
        """SHA-256 of what the image is: the file's bytes, or the upright RGB pixels."""
        if self._image is not None and not self._digest:
            self._digest = hashlib.sha256(_pixel_bytes(self._image)).hexdigest()
        return self._digest

    def decode(self) -> Image.Image:
        """Give the image as upright RGB, as `decode` does."""
        return decode_bytes(self.data, str(self.item)) if self._image is None else self._image


def is_file(item: ImageLike) -> TypeGuard[str | Path]:
    """Whether an image is given by the path of its file."""
    return isinstance(item, str | Path)


def reason_of(error: DataError, item: ImageLike) -> str:
    """Say what is wrong with an image, without the path that the error begins with."""
    return str(error).removeprefix(f"{item}: ") if is_file(item) else str(error)


def check_images(items: Sequence[ImageLike]) -> tuple[list[str], dict[int, str]]:
    """Read and decode every image once.

    Returns
    -------
    tuple
        The digests in order, "" for an image that can't be read; and by row why it can't be.
    """

    def check(item: ImageLike) -> tuple[str, str]:
        try:
            image = Opened(item)
            image.decode()
        except DataError as error:
            return "", reason_of(error, item)
        return image.digest, ""

    found = list(in_threads(check, items))
    return [name for name, _ in found], {row: reason for row, (_, reason) in enumerate(found) if reason}


def require_readable(items: Sequence[ImageLike]) -> list[str]:
    """Give the digests of images, or raise one error if there are none, or if some can't be read."""
    if not items:
        raise DataError("Got no images, expected at least one.")
    names, failures = check_images(items)
    refuse_unreadable(failures, items)
    return names


def refuse_unreadable(failures: Mapping[int, str], items: Sequence[ImageLike]) -> None:
    """Raise one error that names the images that can't be read, if any.

    Parameters
    ----------
    failures
        By row of `items`, the reason.
    items
        All the images that were asked for.

    Raises
    ------
    UnreadableImages
        There are failures.
    """
    if failures:
        reasons = dict(sorted(failures.items()))
        lines = [f"{items[row]}: {why}" if is_file(items[row]) else why for row, why in reasons.items()]
        shown = "\n".join(f"  {line}" for line in lines[:MOST_SHOWN])
        raise UnreadableImages(
            f"{len(reasons)} of {len(items)} images can't be read:\n{shown}",
            reasons,
            {row: items[row] for row in reasons},
        )


def in_threads(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Map in order over a few threads (Pillow decodes outside the interpreter's lock)."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        yield from pool.map(function, items)


def content(item: ImageLike) -> bytes:
    """Give the bytes that identify an image: the file's own, or the upright RGB pixels."""
    if is_file(item):
        try:
            return read_file(Path(item), MAX_BYTES)
        except (OSError, ValueError) as error:
            raise DataError(f"{item}: {getattr(error, 'strerror', None) or error}") from error
    return _pixel_bytes(decode(item))


def _pixel_bytes(image: Image.Image) -> bytes:
    """Write out an image as it will be seen: palette, rotation and transparency are part of it."""
    return f"{image.mode} {image.size} ".encode() + image.tobytes()


def digest(item: ImageLike) -> str:
    """Hash what an image is, not where it lies."""
    return hashlib.sha256(content(item)).hexdigest()


def file_digest(path: str | Path) -> str:
    """Give a file's digest; one that this process has read, and that looks as it did, is not read again.

    Raises
    ------
    DataError
        The file can't be read.
    """
    state = _state(path)
    with _remembering:
        known = _digests.get(state) if state else None
    return known or Opened(path).digest


def _state(path: str | Path) -> FileState | None:
    """Give the path, size and time of change of a file; None if it can't be looked at."""
    try:
        found = Path(path).stat()
    except (OSError, ValueError):
        return None
    return str(Path(path).absolute()), found.st_size, found.st_mtime_ns


def _remember(state: FileState | None, name: str) -> None:
    """Keep a digest, and of many the latest."""
    if state is None:
        return
    with _remembering:
        _digests[state] = name
        if len(_digests) > MOST_REMEMBERED:
            del _digests[next(iter(_digests))]


def decode(item: ImageLike, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open an image as upright RGB.

    Files are opened as one of `FORMATS` only, and their header must not announce more than
    `max_pixels`. EXIF rotation is applied, transparency is laid on white, 16-bit greys are scaled.

    Raises
    ------
    DataError
        The file is missing, empty, truncated, too large, or not an image.
    """
    if not is_file(item):
        try:
            return to_rgb(_from_memory(item))
        except DataError:
            raise
        except Exception as error:  # whatever a reader of image formats makes of damaged bytes
            raise DataError(f"Got an image in memory that can't be read: {error}.") from error
    return decode_bytes(content(item), str(item), max_pixels)


def decode_bytes(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open the bytes of an image file as upright RGB, as `decode` does; errors begin with `name`."""
    if not data:
        raise DataError(f"{name}: the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise DataError(
                    f"{name}: {image.width} x {image.height} pixels, at most {max_pixels} allowed"
                )
            if 0 in image.size:
                raise DataError(f"{name}: {image.width} x {image.height} pixels, expected at least one")
            if max(image.size) > MAX_ASPECT * min(image.size):
                raise DataError(f"{name}: {image.width} x {image.height} pixels is too thin a strip")
            image.load()
            return to_rgb(image)
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name}: more pixels than the {max_pixels} allowed") from error
    except UnidentifiedImageError as error:
        hint = ": save HEIC as JPEG first" if name.lower().endswith((".heic", ".heif")) else ""
        raise DataError(f"{name}: not an image of a known format ({', '.join(FORMATS)}){hint}") from error
    except Exception as error:  # whatever a reader of image formats makes of damaged bytes
        raise DataError(f"{name}: damaged or truncated ({error})") from error


def _from_memory(item: object) -> Image.Image:
    if isinstance(item, Image.Image):
        if 0 in item.size:
            raise DataError(f"Got an image of size {item.size}, expected at least one pixel.")
        return item
    array = np.asarray(item)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,), (4,)):
        raise DataError(
            f"Got an image array of dtype {array.dtype} and shape {array.shape}, expected uint8 of "
            "shape [H, W], [H, W, 3] or [H, W, 4] with values 0 to 255."
        )
    if 0 in array.shape:
        raise DataError(f"Got an image array of shape {array.shape}, expected at least one pixel.")
    return Image.fromarray(array)


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn any Pillow mode into upright RGB on white."""
    with suppress(Exception):  # EXIF that can't be read leaves the pixels as they are
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        with np.errstate(invalid="ignore"):
            grey = np.asarray(image, dtype=np.float64)
        if not np.isfinite(grey).all():
            raise ValueError("pixels that are NaN or infinite")
        top = grey.max(initial=0.0)
        scale = (
            255.0
            if top <= 1 and image.mode == "F"
            else 1.0
            if top <= 255 and image.mode != "I;16"
            else 1 / 257
        )
        return Image.fromarray(np.clip(grey * scale + 0.5, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")

"""Images as people have them: opened safely, read once, known by their content."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from PIL import Image, UnidentifiedImageError

from handful.data.items import address_advice, encoded_bytes, is_encoded_file, is_file, title
from handful.data.limits import MAX_BYTES, lift_pillow, most_pixels, too_many
from handful.data.looks import Look
from handful.data.pixels import from_array, is_deep, spread, to_rgb
from handful.errors import DataError, UnreadableImages
from handful.files import read_file
from handful.types import ImageLike

Image.preinit()  # BMP, GIF, JPEG, PPM and PNG; these and the next before threads need one
for plugin in ("Avif", "Tiff", "WebP"):
    import_module(f"PIL.{plugin}ImagePlugin")  # registers itself; all that Pillow knows would take longer
WANTED = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")  # JPEG opens MPO too
FORMATS = tuple(name for name in WANTED if name in Image.OPEN)
MAX_ASPECT = 1_000
PNG = b"\x89PNG\r\n\x1a\n"
TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
"""Chunks of a PNG that no pixel needs."""
RULE = b" levels scaled by percentiles"
"""Part of the digest of a file beyond 8 bits: features that another rule gave are not taken for its own."""
MOST_SHOWN = 12
"""Bad files that one error names."""
MOST_REMEMBERED = 100_000
"""Digests that are kept in memory."""

FileState: TypeAlias = tuple[str, int, int]
_digests: dict[FileState, str] = {}
_remembering = threading.Lock()


class Opened:
    """An image that was read once: its digest and its pixels come from the same bytes.

    Parameters
    ----------
    item
        In any form.
    remember
        Whether `file_digest` knows the file from now on.

    Attributes
    ----------
    deep
        Whether it has more than 8 bits a channel, so that `handful.data.pixels.to_bytes` scales it.

    Raises
    ------
    DataError
        The file can't be read, or what is in memory is no image.
    """

    def __init__(self, item: ImageLike, remember: bool = True) -> None:
        self.item = item
        self._image: Image.Image | None = None
        self._digest, self.data = "", b""
        if is_file(item) or is_encoded_file(item):
            state = _state(item) if is_file(item) else None  # before it is read, for it may change
            self.data = content(item)
            self.deep = is_deep_file(self.data)
            self._digest = hashlib.sha256(self.data + (RULE if self.deep else b"")).hexdigest()
            if remember:
                _remember(state, self._digest)
        else:
            self._image, self.deep = _from_memory(item)

    @property
    def digest(self) -> str:
        """SHA-256 of what the image is: the file's bytes (and `RULE`, if it is deep), or the RGB pixels."""
        if self._image is not None and not self._digest:
            self._digest = hashlib.sha256(_pixel_bytes(self._image)).hexdigest()
        return self._digest

    def decode(self) -> Image.Image:
        """Give the image as upright RGB, as `decode` does."""
        return decode_bytes(self.data, title(self.item)) if self._image is None else self._image


def reason_of(error: DataError, item: ImageLike) -> str:
    """Say what is wrong with an image, without the name that the error begins with."""
    return str(error).removeprefix(f"{title(item)}: ")


class Checked(NamedTuple):
    """What reading and decoding images found."""

    names: list[str]
    """Their digests, in order; "" for one that can't be read."""
    failures: dict[int, str]
    """By row, why it can't be read."""
    looks: dict[int, Look]
    """By row, of those that are worth a note."""


def check_images(items: Sequence[ImageLike]) -> Checked:
    """Read and decode every image once."""

    def check(item: ImageLike) -> tuple[str, str, Look]:
        try:
            image = Opened(item)
            look = Look(image.deep, spread(image.decode()))
        except DataError as error:
            return "", reason_of(error, item), Look()
        return image.digest, "", look

    found = list(in_threads(check, items))
    return Checked(
        [name for name, _, _ in found],
        {row: reason for row, (_, reason, _) in enumerate(found) if reason},
        {row: look for row, (_, _, look) in enumerate(found) if look.is_odd},
    )


def require_readable(items: Sequence[ImageLike]) -> Checked:
    """Check images, or raise one error if there are none, or if some can't be read."""
    if not items:
        raise DataError("Got no images, expected at least one.")
    found = check_images(items)
    refuse_unreadable(found.failures, items)
    return found


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
        lines = [
            f"{title(items[row])}: {why}" if is_file(items[row]) else f"{why} (image {row})"
            for row, why in reasons.items()
        ]
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


def content(item: Any) -> bytes:
    """Give the bytes of an image's file, by its path or from memory."""
    if not is_file(item):
        return encoded_bytes(item)
    try:
        return read_file(Path(item), MAX_BYTES)
    except (OSError, ValueError) as error:
        reason = address_advice(str(item)) or getattr(error, "strerror", None) or error
        raise DataError(f"{title(item)}: {reason}") from error


def _pixel_bytes(image: Image.Image) -> bytes:
    """Write out an image as it will be seen: palette, rotation and transparency are part of it."""
    return f"{image.mode} {image.size} ".encode() + image.tobytes()


def digest(item: ImageLike) -> str:
    """Hash what an image is, not where it lies."""
    return Opened(item).digest


def file_digest(path: str | os.PathLike[str]) -> str:
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


def _state(path: str | os.PathLike[str]) -> FileState | None:
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


def decode(item: ImageLike, max_pixels: int | None = None) -> Image.Image:
    """Open an image as upright RGB.

    Files are opened as one of `FORMATS` only, and their header must not announce more than `max_pixels`, by
    default `most_pixels()`. Of several frames or pages it is the first. EXIF rotation is applied,
    transparency is laid on white, levels beyond 8 bits are scaled by `handful.data.pixels.to_bytes`, and
    colour profiles are left aside.

    Parameters
    ----------
    item
        A path; a PIL image; the bytes of a file, or a file that is open for bytes; or an array, as
        `[H, W]`, or with 1, 3 or 4 channels as `[H, W, C]` or `[C, H, W]`, of bytes, integers or floats.

    Raises
    ------
    DataError
        The file is missing, empty, truncated, too large, or not an image.
    """
    if is_file(item) or is_encoded_file(item):
        return decode_bytes(content(item), title(item), max_pixels)
    return _from_memory(item)[0]


def decode_bytes(data: bytes, name: str, max_pixels: int | None = None) -> Image.Image:
    """Open the bytes of an image file as upright RGB, as `decode` does; errors begin with `name`."""
    if not data:
        raise DataError(f"{name}: the file is empty")
    most = lift_pillow(most_pixels() if max_pixels is None else max_pixels)
    try:
        try:
            return _decode(data, name, most)
        except ValueError as error:
            if "MAX_TEXT" not in str(error):
                raise
            return _decode(without_texts(data), name, most)
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name}: {too_many(most)}") from error
    except UnidentifiedImageError as error:
        hint = ": save HEIC as JPEG first" if name.lower().endswith((".heic", ".heif")) else ""
        raise DataError(f"{name}: not an image of a known format ({', '.join(FORMATS)}){hint}") from error
    except Exception as error:  # whatever a reader of image formats makes of damaged bytes
        raise DataError(f"{name}: damaged or truncated ({error})") from error


def _decode(data: bytes, name: str, most: int) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > most:
            raise DataError(f"{name}: {image.width} x {image.height}, {too_many(most)}")
        if 0 in image.size:
            raise DataError(f"{name}: {image.width} x {image.height} pixels, expected at least one")
        if max(image.size) > MAX_ASPECT * min(image.size):
            raise DataError(f"{name}: {image.width} x {image.height} pixels is too thin a strip")
        return to_rgb(image)


def without_texts(data: bytes) -> bytes:
    """Give a PNG without its texts and colour profile, which may be of any size: none is unpacked."""
    parts, at = [data[:8]], 8
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        parts += [data[at:end]] if data[at + 4 : at + 8] not in TEXTS else []
        at = end
    return b"".join(parts)


def is_deep_file(data: bytes) -> bool:
    """Whether the bytes of a file are an image of more than 8 bits a channel, by its header."""
    if data[:8] == PNG:
        return data[24:25] == b"\x10"
    if data[:2] not in (b"II", b"MM", b"P2", b"P5", b"Pf"):
        return False  # no other format that is read here has more
    lift_pillow(most_pixels())
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return is_deep(image)
    except Exception:  # who decodes it says why
        return False


def _from_memory(item: Any) -> tuple[Image.Image, bool]:
    """Give an image that is in memory as upright RGB, and whether it has more than 8 bits a channel."""
    deep = False
    try:
        if not isinstance(item, Image.Image):
            item, deep = from_array(item)
        elif 0 in item.size:
            raise DataError(f"Got an image of size {item.size}, expected at least one pixel.")
        deep = deep or is_deep(item)
        return to_rgb(item), deep
    except DataError:
        raise
    except Exception as error:  # whatever a reader of image formats makes of damaged bytes
        raise DataError(f"Got an image in memory that can't be read: {error}.") from error

"""Images on their way to an encoder: each file is read once, and turned into pixels ahead of time."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from PIL import Image
from torch import Tensor

from handful.backbones.base import Backbone
from handful.data.images import Opened, reason_of
from handful.data.looks import Look
from handful.data.pixels import spread
from handful.errors import DataError
from handful.types import ImageLike

BATCH = 64
"""Images that are read at once, and pixels `[3, H, W]` that are encoded at once."""
HELD = 2**28
"""Bytes of files that are held at once, or those of one file that is larger."""
CROP_SCALE = (0.5, 1.0)
"""Area of a view's random crop; Tip-Adapter's recipe. The published code of CoOp takes (0.08, 1)."""

THREADS = min(8, os.cpu_count() or 1)

T = TypeVar("T")


def view_seed(name: str, seed: int, view: int) -> int:
    """Give the seed of an image's view, by the digest of the image."""
    return int.from_bytes(hashlib.sha256(f"{name} {seed} {view}".encode()).digest()[:8], "big") >> 1


class Made(NamedTuple):
    """What a loader made of an image."""

    pixels: Tensor | None
    """All views `[max(V, 1), 3, H, W]`; None for an image that can't be decoded."""
    reason: str = ""
    """Why it can't."""
    look: Look = Look()


@dataclass(frozen=True)
class Loader:
    """What turns images into pixels: as for testing, or V augmented views of each."""

    backbone: Backbone
    views: int = 0
    seed: int = 0
    crop_scale: tuple[float, float] = CROP_SCALE

    @property
    def at_once(self) -> int:
        """Images whose pixels are made at once: about as many as fill a batch with their views."""
        return max(1, BATCH // max(self.views, 1))

    def view(self, image: Image.Image, name: str, view: int) -> Tensor:
        """Give one view `[3, H, W]` of an image, by its digest."""
        if not self.views:
            return self.backbone.preprocess(image)
        return self.backbone.view(image, view_seed(name, self.seed, view), self.crop_scale)

    def pixels(self, image: Opened) -> Made:
        """Give all views, or why the image can't be decoded."""
        try:
            decoded = image.decode()
        except DataError as error:
            return Made(None, reason_of(error, image.item))
        name = image.digest if self.views else ""
        views = [self.view(decoded, name, view) for view in range(max(self.views, 1))]
        return Made(torch.stack(views), "", Look(image.deep, spread(decoded)))


def ahead(make: Callable[[ThreadPoolExecutor], Generator[T, None, None]]) -> Generator[T, None, None]:
    """Give the parts of a generator, each made while the one before is in use.

    Parameters
    ----------
    make
        Builds the generator, which runs in a thread of its own, with a pool of threads to work with.

    Errors of the generator are raised here. However this ends, its threads have ended too: close it
    (`contextlib.closing`) where it may not be used up.
    """
    pool, worker = ThreadPoolExecutor(THREADS, "handful-pool"), ThreadPoolExecutor(1, "handful-ahead")
    parts = make(pool)
    try:
        coming = worker.submit(next, parts, None)
        while (part := coming.result()) is not None:
            coming = worker.submit(next, parts, None)
            yield part
    finally:
        pool.shutdown(cancel_futures=True)  # what was not begun is left, and the worker hears of it
        worker.shutdown()
        parts.close()


class Read(NamedTuple):
    """An image that was read, or why it can't be."""

    image: Opened | None
    name: str
    """The digest; empty unless it was asked for."""
    reason: str


def read_batches(
    pool: ThreadPoolExecutor, items: Iterable[ImageLike], named: bool, remember: bool = True
) -> Iterator[dict[int, Read]]:
    """Read images in order, by row, in batches of at most `BATCH` images and about `HELD` bytes."""
    batch: dict[int, Read] = {}
    size = 0
    for row, read in enumerate(_read_in_order(pool, items, named, remember)):
        batch[row] = read
        size += len(read.image.data) if read.image else 0
        if len(batch) == BATCH or size >= HELD:
            yield batch
            batch, size = {}, 0
    if batch:
        yield batch


def _read_in_order(
    pool: ThreadPoolExecutor, items: Iterable[ImageLike], named: bool, remember: bool
) -> Iterator[Read]:
    """Read images in the threads of a pool, a few ahead of the one that is given."""
    waiting: deque[Future[Read]] = deque()
    for item in items:
        waiting.append(pool.submit(_read, item, named, remember))
        if len(waiting) > 2 * THREADS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _read(item: ImageLike, named: bool, remember: bool) -> Read:
    try:
        image = Opened(item, remember)
    except DataError as error:
        return Read(None, "", reason_of(error, item))
    return Read(image, image.digest if named else "", "")


@dataclass(frozen=True)
class Pixels:
    """Some images as pixels.

    Attributes
    ----------
    rows
        Their places among the items.
    names
        Their digests; empty unless they were asked for.
    values
        `[n, max(V, 1), 3, H, W]`.
    failures
        By row, why an image can't be read; these are not in `rows`.
    looks
        By row, of images that are worth a note.
    """

    rows: list[int]
    names: list[str]
    values: Tensor
    failures: dict[int, str]
    looks: dict[int, Look]


def load_pixels(
    pool: ThreadPoolExecutor, items: Iterable[ImageLike], loader: Loader, named: bool = False
) -> Generator[Pixels, None, None]:
    """Read images and turn each into pixels, the same one twice as well."""
    for batch in read_batches(pool, items, named):
        for some in chunks(list(batch.items()), loader.at_once):
            failures = {row: read.reason for row, read in some if read.image is None}
            images = {row: read.image for row, read in some if read.image is not None}
            made = dict(zip(images, pool.map(loader.pixels, images.values()), strict=True))
            failures |= {row: one.reason for row, one in made.items() if one.reason}
            kept = {row: one.pixels for row, one in made.items() if one.pixels is not None}
            looks = {row: one.look for row, one in made.items() if one.look.is_odd}
            names = [batch[row].name for row in kept]
            yield Pixels(list(kept), names, stack(list(kept.values())), failures, looks)


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Cut a list into parts of one size, and a last one."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def stack(tensors: list[Tensor]) -> Tensor:
    """Stack tensors; of none there is an empty one."""
    return torch.stack(tensors) if tensors else torch.empty(0)

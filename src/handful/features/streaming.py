"""Images in, features out, in parts: what a first run encodes, a second one finds on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from handful.backbones.base import Backbone
from handful.data.given import as_items
from handful.data.images import Opened
from handful.data.looks import Look
from handful.data.sets import ImageSet
from handful.errors import check_integer
from handful.features import loading
from handful.features.loading import CROP_SCALE, Loader, ahead, load_pixels, read_batches, stack
from handful.features.store import Row, Store
from handful.files import cache_folder
from handful.types import ImageLike

LAYOUT = 2
SHARD = 2048
"""Images in a file of the store, at most about as many."""


@dataclass(frozen=True)
class Part:
    """Some of the images that were given, in their order.

    Attributes
    ----------
    rows
        Their places among the given items.
    values
        Raw features `[n, max(V, 1), E]`, of `stream_pixels` pixels `[n, 3, H, W]`; `[0]` where `rows` is
        empty.
    hidden
        `[n, max(V, 1), H]`, the vectors before the tower's final projection, where there is one.
    failures
        By row, why an image can't be read; these are not in `rows`.
    digests
        SHA-256 of each image, as it was read; empty of features that were given.
    looks
        By row, of images that are worth a note: see `handful.data.looks`.
    """

    rows: list[int]
    values: Tensor
    hidden: Tensor | None
    failures: dict[int, str]
    digests: list[str] = field(default_factory=list)
    looks: dict[int, Look] = field(default_factory=dict)


def stream(
    backbone: Backbone,
    items: ImageSet | Iterable[ImageLike],
    *,
    views: int = 0,
    seed: int = 0,
    crop_scale: tuple[float, float] = CROP_SCALE,
    cache: bool = True,
) -> Generator[Part, None, None]:
    """Encode images to raw features, part by part, each image once for each encoding.

    A file is read once, and decoded only if its features are not in the disk cache. The next images are
    read and prepared while the encoder works on those before. Close the generator
    (`contextlib.closing`) where it may not be used up.

    Parameters
    ----------
    backbone, views, seed, crop_scale, cache
        As for `encode`.
    items
        Paths, PIL images, byte arrays, or an `ImageSet`; they may come from a generator, which then runs
        in another thread.

    Yields
    ------
    Part
        Some images and their features, until every row has been in one part, read or failed.
    """
    loader = Loader(backbone, check_integer("views", views, 0), check_integer("seed", seed), crop_scale)
    return _stream(loader, as_items(items), store_of(loader) if cache else None)


def stream_pixels(backbone: Backbone, items: ImageSet | Iterable[ImageLike]) -> Generator[Part, None, None]:
    """Give images as pixels, as for testing, part by part; see `stream`."""
    return _stream_pixels(Loader(backbone), as_items(items))


def store_of(loader: Loader) -> Store:
    """Give the store of an encoding."""
    encoding = [LAYOUT, loader.backbone.fingerprint, str(loader.backbone.dtype), loader.views]
    encoding += [loader.seed, *loader.crop_scale] if loader.views else []
    name = hashlib.sha256(json.dumps(encoding).encode()).hexdigest()[:32]
    return Store(cache_folder() / "features" / name)


def _stream_pixels(loader: Loader, items: Iterable[ImageLike]) -> Generator[Part, None, None]:
    with closing(ahead(partial(load_pixels, items=items, loader=loader, named=True))) as parts:
        for part in parts:
            values = part.values[:, 0] if part.rows else part.values
            yield Part(part.rows, values, None, part.failures, part.names, part.looks)


def _stream(loader: Loader, items: Iterable[ImageLike], store: Store | None) -> Generator[Part, None, None]:
    fresh: dict[str, Row] = {}
    with closing(ahead(partial(_prepare, items=items, loader=loader, store=store))) as groups:
        for group in groups:
            if group.new:
                fresh |= _encode(loader.backbone, group)
            known = [group.found.get(name) or fresh[name] for name in group.names.values()]
            if group.is_last:
                _write(store, fresh)
                fresh = {}
            yield _part(group, known)
    _write(store, fresh)


def _write(store: Store | None, rows: dict[str, Row]) -> None:
    if store is not None and rows:
        store.write(rows)


@dataclass
class _Group:
    """Images that follow one another, as many as have pixels for one batch of the encoder."""

    found: dict[str, Row]
    """What the store holds, by digest."""
    names: dict[int, str] = field(default_factory=dict)
    """Digests, by row."""
    failures: dict[int, str] = field(default_factory=dict)
    """By row."""
    deep: set[int] = field(default_factory=set)
    """Rows of images beyond 8 bits."""
    new: dict[str, int] = field(default_factory=dict)
    """What must be encoded: digests, and how far the levels of the image lie apart."""
    pixels: Tensor = field(default_factory=lambda: torch.empty(0))
    """Of the new ones, `[n, max(V, 1), 3, H, W]`."""
    is_last: bool = False
    """Whether the images since the last such group make a shard."""


def _prepare(
    pool: ThreadPoolExecutor, items: Iterable[ImageLike], loader: Loader, store: Store | None
) -> Generator[_Group, None, None]:
    """Read images, look them up, and make pixels of those that must be encoded.

    The same image twice is encoded once, unless the first is in a shard that ended just before.
    """
    coming: set[str] = set()  # what was encoded since the last shard ended, or will be
    failed: dict[str, str] = {}

    def finish(group: _Group, images: dict[str, Opened]) -> _Group:
        made = dict(zip(images, pool.map(loader.pixels, images.values()), strict=True))
        failed.update((name, one.reason) for name, one in made.items() if one.reason)
        pixels = {name: one.pixels for name, one in made.items() if one.pixels is not None}
        group.new = {name: made[name].look.spread for name in pixels}
        group.pixels = stack(list(pixels.values()))
        group.failures |= {row: failed[name] for row, name in group.names.items() if name in failed}
        group.names = {row: name for row, name in group.names.items() if name not in failed}
        coming.update(pixels)
        group.is_last = len(coming) + len(failed) >= SHARD
        if group.is_last:
            coming.clear()
            failed.clear()
        return group

    few = not isinstance(items, Iterator)  # what comes from a generator may be of any number
    for batch in read_batches(pool, items, named=True, remember=few):
        wanted = {read.name for read in batch.values() if read.image} - coming
        found = store.read(wanted) if store else {}
        group, images = _Group(found), dict[str, Opened]()
        for row, (image, name, reason) in batch.items():
            if image is None:
                group.failures[row] = reason
                continue
            group.names[row] = name
            group.deep |= {row} if image.deep else set()
            if not (name in found or name in coming or name in failed):
                images.setdefault(name, image)
            if len(images) == loader.at_once:
                yield finish(group, images)
                group, images = _Group(found), {}
        if group.names or group.failures:
            yield finish(group, images)


def _encode(backbone: Backbone, group: _Group) -> dict[str, Row]:
    """Encode the new pixels of a group, at most `BATCH` of them at once, by the digests of their images."""
    made = [backbone.encode_image_hidden(some) for some in group.pixels.flatten(0, 1).split(loading.BATCH)]
    shape = (*group.pixels.shape[:2], -1)
    values = torch.cat([value.cpu() for value, _ in made]).view(shape)
    hiddens = [h.cpu() for _, h in made if h is not None]
    hidden = torch.cat(hiddens).view(shape) if hiddens else [None] * len(values)
    return dict(zip(group.new, map(Row, values, hidden, group.new.values()), strict=True))


def _part(group: _Group, known: list[Row]) -> Part:
    hidden = [row.hidden for row in known if row.hidden is not None]
    looks = {row: Look(row in group.deep, one.spread) for row, one in zip(group.names, known, strict=True)}
    return Part(
        list(group.names),
        stack([row.values for row in known]),
        torch.stack(hidden) if hidden and len(hidden) == len(known) else None,
        group.failures,
        list(group.names.values()),
        {row: look for row, look in looks.items() if look.is_odd},
    )

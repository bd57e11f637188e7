"""Encode once: raw image features, cached on disk by content.

One way of encoding (backbone fingerprint, dtype, views, seed, crop scale) has one store on disk; only
images that it does not hold are encoded, and a run that was interrupted goes on from its last shard.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from handful.backbones.base import Backbone
from handful.data.images import decode, digest, in_threads, refuse_unreadable
from handful.data.sets import ImageSet, Rows, choose_rows
from handful.errors import DataError, check_integer, unexpected
from handful.features.store import Store
from handful.files import cache_folder
from handful.progress import bar
from handful.types import ImageLike

__all__ = ["Features", "cache_folder", "encode"]

LAYOUT = 2
BATCH = 64
SHARD = 2048
CROP_SCALE = (0.5, 1.0)
"""Area of a view's random crop; Tip-Adapter's recipe. CoOp's is (0.08, 1) (methods.md §0.3)."""


@dataclass(frozen=True)
class Features:
    """Raw, un-normalised image features.

    Attributes
    ----------
    values
        `[N, V, E]`; V is 1 without augmented views.
    hidden
        `[N, V, H]`, the vector before the tower's final projection, where there is one.
    fingerprint
        Of the backbone that made them; empty if unknown.
    """

    values: Tensor
    hidden: Tensor | None = None
    fingerprint: str = ""

    @classmethod
    def from_array(cls, values: Any, fingerprint: str = "") -> Features:
        """Take features `[N, E]` or `[N, V, E]` that were computed elsewhere."""
        tensor = torch.as_tensor(np.asarray(values) if not isinstance(values, Tensor) else values)
        if tensor.ndim not in (2, 3) or 0 in tensor.shape[1:] or not tensor.dtype.is_floating_point:
            raise DataError(
                f"Got features of shape {tuple(tensor.shape)} and dtype {tensor.dtype}, expected "
                "floating point [N, E] or [N, V, E]."
            )
        if not torch.isfinite(tensor).all():
            raise DataError("Got features that hold NaN or infinity, expected finite numbers.")
        tensor = tensor.detach().float()
        return cls(tensor if tensor.ndim == 3 else tensor[:, None], None, fingerprint)

    def __len__(self) -> int:
        return len(self.values)

    def identity(self) -> str:
        """Hash the values."""
        return hashlib.sha256(self.values.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()

    def __getitem__(self, rows: Rows) -> Features:
        """Choose rows: `features[[3, 1, 4]]`, a slice, or a mask."""
        chosen = torch.as_tensor(choose_rows(rows, len(self)))
        hidden = None if self.hidden is None else self.hidden[chosen]
        return Features(self.values[chosen], hidden, self.fingerprint)

    def pooled(self) -> Tensor:
        """One raw vector for each image: the mean over its views, `[N, E]`."""
        return self.values.mean(1)

    def directions(self) -> Tensor:
        """One unit vector for each image: the mean of its raw views, then normalised, `[N, E]`."""
        return F.normalize(self.pooled(), dim=-1)

    def sample(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Give one view of each of some images, chosen at random, `[B, E]`."""
        chosen = self.values[rows]
        views = torch.randint(chosen.shape[1], (len(rows),), generator=generator)
        return chosen[torch.arange(len(rows)), views]


def encode(
    backbone: Backbone,
    images: ImageSet | Iterable[ImageLike],
    *,
    views: int = 0,
    seed: int = 0,
    crop_scale: tuple[float, float] = CROP_SCALE,
    cache: bool = True,
    progress: bool | None = None,
) -> Features:
    """Encode images to raw features, each image once for each way of encoding.

    Parameters
    ----------
    backbone
        Any backbone.
    images
        Paths, PIL images, byte arrays, or an `ImageSet`.
    views
        0: the image as for testing. V >= 1: V augmented views of it (random crop and flip).
    seed
        Of the views. A view depends on the image's content, the seed and the view's number.
    crop_scale
        Smallest and largest area of a view's crop, as a share of the image.
    cache
        Read and write the disk cache (see `cache_folder`).
    progress
        Show a bar on stderr; None shows it on a terminal.

    Returns
    -------
    Features
        `values [N, max(V, 1), E]` and, where the tower has them, `hidden [N, max(V, 1), H]`.

    Raises
    ------
    DataError
        Some images can't be read: all of them in one error. What was encoded stays cached.
    """
    views, seed = check_integer("views", views, 0), check_integer("seed", seed)
    if not isinstance(images, Iterable | ImageSet):
        raise unexpected("images", images, "paths, images, an ImageSet or Features")
    items = tuple(images.items if isinstance(images, ImageSet) else images)
    if not items:
        raise DataError("Got no images, expected at least one.")
    names, failures = _digests(items)
    way = [LAYOUT, backbone.fingerprint, str(backbone.dtype), views]
    way += [seed, *crop_scale] if views else []
    store = Store(cache_folder() / "features" / hashlib.sha256(json.dumps(way).encode()).hexdigest()[:32])
    found = store.read(set(names)) if cache else {}
    missing = {name: item for name, item in zip(names, items, strict=True) if name and name not in found}
    with bar("Encoding images", len(missing), progress) as advance:
        fresh: dict[str, tuple[Tensor, Tensor | None]] = {}
        for batch in _batches(list(missing.items()), BATCH):
            good, bad = decode_all(batch)
            failures += bad
            if good:
                fresh |= _encode_batch(backbone, good, views, seed, crop_scale)
            advance(len(batch))
            if cache and len(fresh) >= SHARD:
                store.write(fresh)
                found |= fresh
                fresh = {}
        if cache and fresh:
            store.write(fresh)
        found |= fresh
    refuse_unreadable(failures, len(items))
    rows = [found[name] for name in names]
    hidden = [h for _, h in rows if h is not None]
    return Features(
        torch.stack([value for value, _ in rows]),
        torch.stack(hidden) if len(hidden) == len(rows) else None,
        backbone.fingerprint,
    )


def _digests(items: Sequence[ImageLike]) -> tuple[list[str], list[str]]:
    """Digests in order ("" where an item can't be read), and what was wrong."""

    def one(item: ImageLike) -> tuple[str, str]:
        try:
            return digest(item), ""
        except DataError as error:
            return "", str(error)

    pairs = list(in_threads(one, items))
    return [name for name, _ in pairs], [error for _, error in pairs if error]


def _batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def decode_all(
    batch: list[tuple[str, ImageLike]],
) -> tuple[list[tuple[str, Image.Image]], list[str]]:
    """Decode named images: those that can be, and what is wrong with the others."""

    def one(pair: tuple[str, ImageLike]) -> tuple[str, Image.Image | None, str]:
        try:
            return pair[0], decode(pair[1]), ""
        except DataError as error:
            return pair[0], None, str(error)

    decoded = list(in_threads(one, batch))
    return [(name, image) for name, image, _ in decoded if image], [e for _, _, e in decoded if e]


def _encode_batch(
    backbone: Backbone,
    images: list[tuple[str, Image.Image]],
    views: int,
    seed: int,
    crop_scale: tuple[float, float],
) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Encode decoded images, all their views, in batches of `BATCH` pixels tensors."""
    if views:
        pixels = [
            backbone.view(image, view_seed(name, seed, view), crop_scale)
            for name, image in images
            for view in range(views)
        ]
    else:
        pixels = [backbone.preprocess(image) for _, image in images]
    parts = [backbone.encode_image_hidden(torch.stack(part)) for part in _batches(pixels, BATCH)]
    shape = (len(images), max(views, 1), -1)
    values = torch.cat([value.cpu() for value, _ in parts]).view(shape)
    hiddens = [h.cpu() for _, h in parts if h is not None]
    hidden = torch.cat(hiddens).view(shape) if hiddens else None
    return {
        name: (values[row], None if hidden is None else hidden[row]) for row, (name, _) in enumerate(images)
    }


def view_seed(name: str, seed: int, view: int) -> int:
    """Give the seed of an image's view, by the digest of the image."""
    return int.from_bytes(hashlib.sha256(f"{name} {seed} {view}".encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class Part:
    rows: list[int]
    values: Tensor
    hidden: Tensor | None
    failures: dict[int, str]


def stream(backbone, items, *, views=0, seed=0, crop_scale=CROP_SCALE, cache=True):
    f = encode(backbone, items, views=views, seed=seed, crop_scale=crop_scale, cache=cache)
    yield Part(list(range(len(f))), f.values, f.hidden, {})


def stream_pixels(backbone, items):
    for start in range(0, len(items), BATCH):
        good, bad = decode_all([("", item) for item in items[start : start + BATCH]])
        failures = dict(enumerate(bad, start))
        yield Part(
            list(range(len(good))),
            torch.stack([backbone.preprocess(i) for _, i in good]) if good else torch.zeros(0),
            None,
            failures,
        )

"""Encode once: raw image features, cached on disk by content.

One encoding (backbone fingerprint, dtype, views, seed, crop scale) has one store on disk; only images
that it does not hold are encoded, and a run that was interrupted goes on from its last shard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from handful.backbones.base import Backbone
from handful.data.given import as_items
from handful.data.images import digest, file_digest, refuse_unreadable
from handful.data.items import is_file
from handful.data.looks import Look, note_on_same, notes_on
from handful.data.sets import ImageSet, Rows, choose_rows
from handful.errors import DataError
from handful.features.loading import CROP_SCALE
from handful.features.streaming import Part, stream, stream_pixels
from handful.files import cache_folder
from handful.progress import bar
from handful.types import ImageLike

MANY = 3
"""Different images of one feature that are named."""
CLOSE = 1e-6
"""Difference of two numbers of a unit feature that sums in another order make."""

__all__ = ["CROP_SCALE", "Features", "Part", "cache_folder", "encode", "stream", "stream_pixels"]


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
    digests
        SHA-256 of each image, `[N]`; empty if unknown.
    notes
        What is odd about the images that they were made of, a sentence each; `fit` repeats them.
    """

    values: Tensor
    hidden: Tensor | None = None
    fingerprint: str = ""
    digests: tuple[str, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()

    @classmethod
    def from_array(cls, values: Any, fingerprint: str = "") -> Features:
        """Take features `[N, E]` or `[N, V, E]` that were computed elsewhere."""
        tensor = values if isinstance(values, Tensor) else torch.as_tensor(_as_numbers(values))
        if tensor.ndim not in (2, 3) or 0 in tensor.shape[1:] or not tensor.dtype.is_floating_point:
            raise DataError(
                f"Got features of shape {tuple(tensor.shape)} and dtype {tensor.dtype}, expected "
                "floating point [N, E] or [N, V, E]. If they are one grey picture, give it in a list."
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
        digests = tuple(self.digests[row] for row in chosen.tolist()) if self.digests else ()
        return Features(self.values[chosen], hidden, self.fingerprint, digests)

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


def _as_numbers(values: Any) -> np.ndarray[Any, Any]:
    """Give an array of numbers that torch may share: one that is read-only is copied."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        reason = "Complex data not supported: got" if array.dtype.kind == "c" else "Got"
        raise DataError(
            f"{reason} features of dtype {array.dtype}, expected floating point [N, E] or [N, V, E]."
        )
    if array.ndim > 1 and not array.shape[1]:
        raise DataError(
            f"Got features with 0 feature(s) (shape={array.shape}) while a minimum of 1 is required."
        )
    return array if array.flags.writeable else array.copy()


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
    """Encode images to raw features, each image once for each encoding.

    Parameters
    ----------
    backbone
        Any backbone.
    images
        One image or several, as paths, PIL images, arrays, bytes of files, open files; or an `ImageSet`.
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
    UnreadableImages
        All images that can't be read, in one error. What was encoded stays cached.
    """
    items = tuple(as_items(images))
    parts = stream(backbone, items, views=views, seed=seed, crop_scale=crop_scale, cache=cache)
    if not items:
        raise DataError("Got no images, expected at least one.")
    failures: dict[int, str] = {}
    looks: dict[int, Look] = {}
    good: list[Part] = []
    with bar("Encoding images", len(items), progress) as advance, closing(parts):
        for part in parts:
            failures |= part.failures
            looks |= part.looks
            good += [part] if part.rows else []
            advance(len(part.rows) + len(part.failures))
    refuse_unreadable(failures, items)
    hidden = [part.hidden for part in good if part.hidden is not None]
    values = torch.cat([part.values for part in good])
    return Features(
        values,
        torch.cat(hidden) if len(hidden) == len(good) else None,
        backbone.fingerprint,
        digests=tuple(digest for part in good for digest in part.digests),
        notes=(*notes_on(items, looks), *note_on_same(items, same_features(values.mean(1), items))),
    )


def same_features(values: Tensor, items: Sequence[ImageLike]) -> list[list[int]]:
    """Find images of different content that have the same feature, of features `[N, E]`: rows of each group.

    Groups of fewer than `MANY` are left out, for two files may well hold one picture.
    """
    units = F.normalize(values.double(), dim=-1)
    direction = torch.randn(units.shape[1], generator=torch.Generator().manual_seed(0), dtype=units.dtype)
    order = (units @ direction).argsort()  # the same ones stand together
    ends = torch.cat([(units[order].diff(dim=0).abs().amax(1) > CLOSE), torch.ones(1, dtype=torch.bool)])
    starts = [0, *(ends.nonzero().flatten() + 1).tolist()]
    groups = [sorted(order[start:end].tolist()) for start, end in pairwise(starts) if end - start >= MANY]
    by_content = [list({_content(items[row]): row for row in reversed(rows)}.values()) for rows in groups]
    return [sorted(rows) for rows in by_content if len(rows) >= MANY]


def _content(item: ImageLike) -> str:
    return file_digest(item) if is_file(item) else digest(item)

"""Fresh crops of the support set at every training step, in place of cached views."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from handful.backbones.base import Backbone
from handful.data.images import decode, in_threads, require_readable
from handful.data.looks import notes_on
from handful.data.sets import Rows, choose_rows
from handful.features.loading import BATCH
from handful.features.views import InputStage
from handful.types import ImageLike

PASSES = 10
"""Crops behind an image's one vector, as in Tip-Adapter's recipe."""


@dataclass(frozen=True)
class Online:
    """Fresh crops at every call, as published: the image tower runs in the training loop.

    `stage` is what a method inside the image tower reads in place of features; `digests [N]` are the SHA-256
    of the images.
    """

    backbone: Backbone
    items: tuple[ImageLike, ...]
    crop_scale: tuple[float, float]
    stage: InputStage | None = None
    digests: tuple[str, ...] = field(init=False, repr=False)
    notes: tuple[str, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        read = require_readable(self.items)
        object.__setattr__(self, "digests", tuple(read.names))
        object.__setattr__(self, "notes", notes_on(self.items, read.looks))

    @property
    def fingerprint(self) -> str:
        """Of the backbone."""
        return self.backbone.fingerprint

    def __len__(self) -> int:
        return len(self.items)

    def identity(self) -> str:
        """Hash what makes the crops."""
        encoding = [*self.digests, *self.crop_scale, self.fingerprint]
        return hashlib.sha256(repr(encoding).encode()).hexdigest()

    def __getitem__(self, rows: Rows) -> Online:
        """Choose rows."""
        chosen = choose_rows(rows, len(self))
        return Online(self.backbone, tuple(self.items[row] for row in chosen), self.crop_scale, self.stage)

    def pooled(self) -> Tensor:
        """One raw vector for each image: the mean over PASSES fresh crops, `[N, E]`."""
        generator, rows = torch.Generator().manual_seed(0), torch.arange(len(self))
        parts = [
            torch.stack([self.sample(some, generator) for _ in range(PASSES)]).mean(0)
            for some in rows.split(BATCH)
        ]
        return torch.cat(parts)

    def directions(self) -> Tensor:
        """One unit vector for each image: the mean of its raw crops, then normalised, `[N, E]`."""
        return F.normalize(self.pooled(), dim=-1)

    def sample(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Give what is read of one new random crop of each of some images: features `[B, E]`."""
        seeds = torch.randint(2**62, (len(rows),), generator=generator).tolist()
        images = in_threads(decode, [self.items[row] for row in rows.tolist()])
        crops = [
            self.backbone.view(image, seed, self.crop_scale)
            for image, seed in zip(images, seeds, strict=True)
        ]
        read = self.stage or self.backbone.encode_image
        return read(torch.stack(crops)).float().cpu()

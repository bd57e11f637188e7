"""Views of a support set as a method inside the image tower reads them, computed once where there is room.

What lies below the first block that is trained is frozen, so its output for a cached view is a
constant: training starts from there. The numbers are the same wherever they are kept.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from handful.backbones.base import Backbone
from handful.data.images import decode, in_threads, refuse_unreadable, require_readable
from handful.data.looks import Look, notes_on
from handful.errors import DataError, check_integer, unexpected
from handful.features.loading import BATCH, Loader, ahead, load_pixels
from handful.files import cache_folder, is_writable
from handful.progress import bar
from handful.types import ImageLike

InputStage = Callable[[Tensor], Tensor]
"""What pixels `[N, 3, H, W]` are read as, `[N, ...]`."""
Keep = Literal["auto", "memory", "disk", "off"]
SHARE = 0.25
"""Of the memory, or of the disk, that is free now, a cache may take this much."""


class Views:
    """V views of each of N images, as an input stage reads them.

    Parameters
    ----------
    backbone
        That makes the views.
    items
        The images.
    stage
        What the method reads: for MMA, the tokens that enter the first adapted block.
    views, seed, crop_scale
        As for `encode`; 0 views take the image as for testing.
    keep
        `"memory"`, `"disk"` (a scratch file in the cache folder, gone with the object), `"off"`, or
        `"auto"`: the first of these that has room. Kept, each image is read and decoded once; with
        `"off"`, at every step.

    Raises
    ------
    UnreadableImages
        All images that can't be read, in one error.
    """

    def __init__(
        self,
        backbone: Backbone,
        items: tuple[ImageLike, ...],
        stage: InputStage,
        *,
        views: int,
        seed: int,
        crop_scale: tuple[float, float],
        keep: Keep = "auto",
    ) -> None:
        if not isinstance(keep, str) or keep not in ("auto", "memory", "disk", "off"):
            raise unexpected("cache", keep, "'auto', 'memory', 'disk' or 'off'")
        if not items:
            raise DataError("Got no images, expected at least one.")
        self.backbone, self.items, self.stage = backbone, items, stage
        self.loader = Loader(
            backbone, check_integer("views", views, 0), check_integer("seed", seed), crop_scale
        )
        blank = backbone.preprocess(Image.new("RGB", (backbone.image_size,) * 2))
        self.shape = (len(items), max(views, 1), *self._read(torch.zeros_like(blank)[None]).shape[1:])
        self.kept: Literal["memory", "disk", "off"] = (
            room(4 * int(np.prod(self.shape))) if keep == "auto" else keep
        )
        self.names: list[str] = []
        self.notes: tuple[str, ...] = ()
        self.states: Tensor | None = None
        if self.kept == "off":
            checked = require_readable(items)
            self.names, self.notes = checked.names, notes_on(items, checked.looks)
        else:
            self.states = torch.empty(self.shape) if self.kept == "memory" else scratch(self.shape)
            self._fill(self.states)

    @property
    def fingerprint(self) -> str:
        """Of the backbone."""
        return self.backbone.fingerprint

    @property
    def digests(self) -> tuple[str, ...]:
        """SHA-256 of each image, `[N]`."""
        return tuple(self.names)

    def __len__(self) -> int:
        return len(self.items)

    def identity(self) -> str:
        """Hash what makes the views."""
        loader = self.loader
        settings = [loader.views, loader.seed, *loader.crop_scale, *self.shape, self.fingerprint]
        return hashlib.sha256(repr([*self.names, *settings]).encode()).hexdigest()

    def sample(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Give one view of each of some images, chosen at random, `[B, ...]`."""
        views = torch.randint(self.shape[1], (len(rows),), generator=generator)
        if self.states is not None:
            return self.states[rows, views]
        chosen = rows.unique().tolist()
        images = dict(zip(chosen, in_threads(decode, [self.items[row] for row in chosen]), strict=True))
        places = zip(rows.tolist(), views.tolist(), strict=True)
        pixels = [self.loader.view(images[row], self.names[row], view) for row, view in places]
        return self._read(torch.stack(pixels))

    def _read(self, pixels: Tensor) -> Tensor:
        """Read pixels `[B, 3, H, W]`: `[B, ...]` on the CPU."""
        return self.stage(pixels).float().cpu()

    def _fill(self, states: Tensor) -> None:
        """Read every view of every image, once."""
        failures: dict[int, str] = {}
        looks: dict[int, Look] = {}
        parts = ahead(partial(load_pixels, items=self.items, loader=self.loader, named=True))
        with bar("Reading views", states.shape[:2].numel()) as advance, closing(parts):
            for part in parts:
                failures |= part.failures
                looks |= part.looks
                self.names += part.names
                if part.rows and not failures:  # after a failure only the others are looked for
                    read = [self._read(some) for some in part.values.flatten(0, 1).split(BATCH)]
                    states[part.rows] = torch.cat(read).view(len(part.rows), *self.shape[1:])
                advance((len(part.rows) + len(part.failures)) * self.shape[1])
        refuse_unreadable(failures, self.items)
        self.notes = notes_on(self.items, looks)


def room(size: int) -> Literal["memory", "disk", "off"]:
    """Say where so many bytes have room."""
    if size <= SHARE * free_memory():
        return "memory"
    folder = cache_folder()
    if not is_writable(folder):
        return "off"
    while not folder.exists():
        folder = folder.parent
    return "disk" if size <= SHARE * shutil.disk_usage(folder).free else "off"


def free_memory() -> int:
    """Bytes of memory that are free, within a container's limit; 4 GiB where the system does not say."""
    try:
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_bytes()) for name in ("max", "current"))
        most = max(limit - used, 0)
    except (OSError, ValueError):  # there is none
        most = sys.maxsize
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
        return min(free, most)
    except (OSError, StopIteration):
        return min(4 * 2**30, most)


def scratch(shape: tuple[int, ...]) -> Tensor:
    """Give a tensor that lies in a nameless file of the cache folder."""
    folder = cache_folder()
    size = 4 * int(np.prod(shape))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:  # the mapping outlives the file's name and handle
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk shows now, not in the middle
            return torch.from_numpy(np.memmap(file, np.float32, "w+", shape=shape))
    except OSError as error:
        raise DataError(
            f"Got cache='disk', and {folder} can't take {size / 2**30:.1f} GiB ({error.strerror or error}). "
            "Free some, set HANDFUL_CACHE to another disk, or give cache='off'."
        ) from error

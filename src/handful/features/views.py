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
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from handful.backbones.base import Backbone
from handful.data.images import decode, digest, in_threads, require_readable
from handful.errors import DataError, check_integer, unexpected
from handful.features import BATCH, view_seed
from handful.files import cache_folder
from handful.progress import bar
from handful.types import ImageLike

InputStage = Callable[[Tensor], Tensor]
"""What pixels `[N, 3, H, W]` are read as, `[N, ...]`."""
Keep = Literal["auto", "memory", "disk", "off"]
SHARE = 0.25
"""Of the memory, or of the disk, that is free now, a cache may take this much."""


class Views:
    """V views of each of N images, read by `stage`.

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
        `"auto"`: the first of these that has room.
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
        self.backbone, self.items, self.stage = backbone, items, stage
        self.views, self.seed = check_integer("views", views, 0), check_integer("seed", seed)
        self.crop_scale = crop_scale
        require_readable(items)
        self.names = list(in_threads(digest, items))
        first = self._read([(0, 0)])
        self.shape = (len(items), max(views, 1), *first.shape[1:])
        self.kept: Literal["memory", "disk", "off"] = (
            room(4 * int(np.prod(self.shape))) if keep == "auto" else keep
        )
        self.states = None if self.kept == "off" else self._fill()

    @property
    def fingerprint(self) -> str:
        """Of the backbone."""
        return self.backbone.fingerprint

    def __len__(self) -> int:
        return len(self.items)

    def identity(self) -> str:
        """Hash what makes the views."""
        way = [*self.names, self.views, self.seed, *self.crop_scale, *self.shape, self.fingerprint]
        return hashlib.sha256(repr(way).encode()).hexdigest()

    def sample(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Give one view of each of some images, chosen at random, `[B, ...]`."""
        views = torch.randint(self.shape[1], (len(rows),), generator=generator)
        if self.states is None:
            return self._read(list(zip(rows.tolist(), views.tolist(), strict=True)))
        return self.states[rows, views]

    def _read(self, chosen: list[tuple[int, int]]) -> Tensor:
        """Make some views, by image and number, and read them: `[B, ...]` on the CPU."""
        rows = list(dict.fromkeys(row for row, _ in chosen))
        images = dict(zip(rows, in_threads(decode, [self.items[row] for row in rows]), strict=True))

        def pixels(row: int, view: int) -> Tensor:
            if not self.views:
                return self.backbone.preprocess(images[row])
            seed = view_seed(self.names[row], self.seed, view)
            return self.backbone.view(images[row], seed, self.crop_scale)

        return self.stage(torch.stack([pixels(*place) for place in chosen])).float().cpu()

    def _fill(self) -> Tensor:
        """Read every view of every image, once."""
        places = [(row, view) for row in range(self.shape[0]) for view in range(self.shape[1])]
        states = torch.empty(self.shape) if self.kept == "memory" else scratch(self.shape)
        flat = states.flatten(0, 1)
        with bar("Reading views", len(places)) as advance:
            for start in range(0, len(places), BATCH):
                part = places[start : start + BATCH]
                flat[start : start + len(part)] = self._read(part)
                advance(len(part))
        return states


def room(size: int) -> Literal["memory", "disk", "off"]:
    """Say where so many bytes have room."""
    if size <= SHARE * free_memory():
        return "memory"
    folder = cache_folder()
    while not folder.exists():
        folder = folder.parent
    return "disk" if size <= SHARE * shutil.disk_usage(folder).free else "off"


def free_memory() -> int:
    """Bytes of memory that are free, within a container's limit; 4 GiB where the system does not say."""
    try:
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        most = max(limit - used, 0)
    except (OSError, ValueError):  # there is none
        most = sys.maxsize
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
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

"""Features on disk, found by the content of their images.

A store is a folder of shards `<hash>.safetensors`, each with the digests of some images beside their
features. A shard is written to a unique temporary file and renamed, so two processes may write at once.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors
import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from handful.files import write_atomically


class Row(NamedTuple):
    """What is kept of one image."""

    values: Tensor
    """Features `[V, E]`."""
    hidden: Tensor | None = None
    """The vectors before the final projection, `[V, H]`."""
    spread: int = 255
    """How far the levels of its pixels lie apart; earlier versions kept no such number."""


class Store:
    """Features on disk, for one encoding.

    Which image is in which shard is read once, and no further than it takes to find what is wanted. One
    thread may read while another writes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._unread: list[Path] | None = None
        self._places: dict[str, tuple[Path, int]] = {}
        self._damaged: set[Path] = set()

    def read(self, wanted: Iterable[str]) -> dict[str, Row]:
        """Find the wanted digests; a shard that can't be read counts as absent."""
        names = list(dict.fromkeys(wanted))
        if self._unread is None:
            self._unread = sorted(self.folder.glob("*.safetensors"), reverse=True)
        while self._unread and not all(name in self._places for name in names):
            self._list(self._unread.pop())
        chosen: dict[Path, dict[str, int]] = {}
        for name in names:
            shard, row = self._places.get(name, (None, 0))
            if shard is not None and shard not in self._damaged:
                chosen.setdefault(shard, {})[name] = row
        found: dict[str, Row] = {}
        for shard, rows in chosen.items():
            found |= self._gather(shard, rows)
        return found

    def _list(self, shard: Path) -> None:
        """Read which images a shard holds."""
        try:
            with safetensors.safe_open(shard, "pt") as file:
                digests = file.get_tensor("digests").numpy()
        except (SafetensorError, OSError) as error:
            self._leave_out(shard, error)
            return
        for row, name in enumerate(digests):
            self._places.setdefault(name.tobytes().hex(), (shard, row))

    def _gather(self, shard: Path, rows: Mapping[str, int]) -> dict[str, Row]:
        """Read some rows of a shard."""
        places = list(rows.values())
        try:
            with safetensors.safe_open(shard, "pt") as file:
                values = file.get_tensor("values")[places]
                kept = set(file.keys())
                hidden = file.get_tensor("hidden")[places] if "hidden" in kept else None
                spreads = file.get_tensor("spreads")[places].tolist() if "spreads" in kept else None
        except (SafetensorError, OSError) as error:
            self._leave_out(shard, error)
            return {}
        hiddens = [None] * len(places) if hidden is None else hidden
        spreads = [255] * len(places) if spreads is None else spreads
        return dict(zip(rows, map(Row, values, hiddens, spreads), strict=True))

    def _leave_out(self, shard: Path, error: Exception) -> None:
        self._damaged.add(shard)
        warnings.warn(f"Leaving out a damaged cache file, {shard}: {error}", stacklevel=2)

    def write(self, given: Mapping[str, Row | tuple[Tensor, Tensor | None]]) -> None:
        """Add a shard; a full or read-only disk costs the cache, not the run."""
        rows = {name: Row(*row) for name, row in given.items()}
        tensors = {
            "digests": torch.tensor([list(bytes.fromhex(name)) for name in rows], dtype=torch.uint8),
            "values": torch.stack([row.values for row in rows.values()]),
            "spreads": torch.tensor([row.spread for row in rows.values()], dtype=torch.uint8),
        }
        hidden = [row.hidden for row in rows.values() if row.hidden is not None]
        if len(hidden) == len(rows):
            tensors["hidden"] = torch.stack(hidden)
        name = hashlib.sha256("".join(rows).encode()).hexdigest()[:32]
        shard = self.folder / f"{name}.safetensors"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(shard, save(tensors))
        except OSError as error:
            warnings.warn(f"Features are not cached in {self.folder}: {error}", stacklevel=4)
            return
        self._places.update((name, (shard, row)) for row, name in enumerate(rows))

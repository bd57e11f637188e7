"""Features on disk, found by the content of their images.

A store is a folder of shards `<hash>.safetensors`, each with the digests of some images beside their
features. A shard is written to a unique temporary file and renamed, so two processes may write at once.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import safetensors
import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from handful.files import write_atomically


class Store:
    """Features on disk, for one way of encoding."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, wanted: set[str]) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Find the wanted digests; a shard that can't be read counts as absent."""
        found: dict[str, tuple[Tensor, Tensor | None]] = {}
        for shard in sorted(self.folder.glob("*.safetensors")):
            if wanted <= found.keys():
                break
            try:
                with safetensors.safe_open(shard, "pt") as file:
                    names = [row.numpy().tobytes().hex() for row in file.get_tensor("digests")]
                    rows = [row for row, name in enumerate(names) if name in wanted]
                    if not rows:
                        continue
                    values = file.get_tensor("values")[rows]
                    hidden = file.get_tensor("hidden")[rows] if "hidden" in file.keys() else None  # noqa: SIM118
            except (SafetensorError, OSError) as error:
                warnings.warn(f"Leaving out a damaged cache file, {shard}: {error}", stacklevel=4)
                continue
            for place, row in enumerate(rows):
                found[names[row]] = (values[place], None if hidden is None else hidden[place])
        return found

    def write(self, rows: dict[str, tuple[Tensor, Tensor | None]]) -> None:
        """Add a shard; a full or read-only disk costs the cache, not the run."""
        digests = torch.tensor([list(bytes.fromhex(name)) for name in rows], dtype=torch.uint8)
        tensors = {"digests": digests, "values": torch.stack([value for value, _ in rows.values()])}
        hidden = [h for _, h in rows.values() if h is not None]
        if len(hidden) == len(rows):
            tensors["hidden"] = torch.stack(hidden)
        name = hashlib.sha256("".join(rows).encode()).hexdigest()[:32]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / f"{name}.safetensors", save(tensors))
        except OSError as error:
            warnings.warn(f"Features are not cached in {self.folder}: {error}", stacklevel=4)

"""Snapshots of a training at the end of an epoch: kept when it is interrupted, resumed by the same fit.

A fit is a function of (backbone, support set, parameters, seed), so one that resumes from a snapshot ends
where it would have ended, to the last bit.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn

from handful.files import cache_folder, write_atomically


@dataclass(frozen=True)
class Snapshot:
    """Parameters, buffers, states of the optimizer and of the generator, and losses, after some epochs."""

    epochs: int
    losses: list[float]
    tensors: dict[str, Tensor] = field(repr=False)

    @classmethod
    def take(
        cls, epochs: int, losses: list[float], model: nn.Module, optimizer: torch.optim.Optimizer,
        generator: torch.Generator | None,
    ) -> Snapshot:  # fmt: skip
        """Copy all of it, to the CPU."""
        tensors = {
            f"parameter.{n}": p.detach().to("cpu", copy=True) for n, p in enumerate(_parameters(optimizer))
        }
        for name, value in model.named_buffers():
            tensors[f"buffer.{name}"] = value.to("cpu", copy=True)
        for number, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{number}.{name}"] = value.to("cpu", copy=True)
        if generator is not None:
            tensors["generator"] = generator.get_state()
        return cls(epochs, list(losses), tensors)

    def put_back(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator | None
    ) -> None:
        """Set parameters, buffers, optimizer and generator to where they stood."""
        state: dict[int, dict[str, Tensor]] = {}
        buffers = dict(model.named_buffers())
        with torch.no_grad():
            for name, value in self.tensors.items():
                kind, _, rest = name.partition(".")
                if kind == "parameter":
                    _parameters(optimizer)[int(rest)].copy_(value)
                elif kind == "buffer":
                    buffers[rest].copy_(value)
                elif kind == "optimizer":
                    number, _, key = rest.partition(".")
                    state.setdefault(int(number), {})[key] = value.clone()
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        if generator is not None:
            generator.set_state(self.tensors["generator"])


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


class SnapshotStore:
    """The file that keeps an interrupted training, in the cache folder, by the identity of the training."""

    def __init__(self, key: str, *facts: Any) -> None:
        name = hashlib.sha256(repr((key, *facts)).encode()).hexdigest()[:32]
        self.path: Path = cache_folder() / "training" / f"{name}.safetensors"

    def read(self) -> Snapshot | None:
        """Give what is kept; a file that can't be read counts as absent."""
        if not self.path.exists():
            return None
        try:
            with safetensors.safe_open(self.path, "pt") as file:
                facts = json.loads(file.metadata()["snapshot"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return Snapshot(int(facts["epochs"]), [float(loss) for loss in facts["losses"]], tensors)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            warnings.warn(f"Leaving out a damaged file, {self.path}: {error}", stacklevel=4)
            return None

    def write(self, snapshot: Snapshot) -> bool:
        """Keep it, and say whether that worked; a full or read-only disk costs the resuming."""
        facts = json.dumps({"epochs": snapshot.epochs, "losses": snapshot.losses})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            tensors = {name: value.contiguous() for name, value in snapshot.tensors.items()}
            write_atomically(self.path, save(tensors, {"snapshot": facts}))
        except OSError as error:
            warnings.warn(f"The training is not kept in {self.path.parent}: {error}", stacklevel=4)
            return False
        return True

    def remove(self) -> None:
        """Forget it."""
        self.path.unlink(missing_ok=True)

"""A folder of golden values of the published code, and how far from them counts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import handful
from handful.estimator import Task

TOLERANCE = 1e-4
RELATIVE = ("gda.", "sstext.", "ape.similarity", "proker.")
"""What is meant relative to its own size, beside gradients and logits beyond 60."""
SETS = ("ape.channels", "ape_t.channels", "ape_t.shared.channels")
"""What has no order."""
Found = Iterator[tuple[str, Tensor]]
"""Keys, and what we compute for each."""
Compare = Callable[["Golden"], Found]


class Golden:
    """A golden folder: tensors by key, and `meta.json`."""

    def __init__(self, folder: Path, plain: bool = False) -> None:
        self.folder = folder
        self.meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())
        self.backbone = handful.load_backbone(
            folder / "clip.json", weights=folder / "clip.safetensors", device="cpu"
        )
        if plain:  # a tower that is not known to be causal takes the plain pass
            self.backbone.text = replace(self.backbone.text, causal=False)
        second = folder / "ring2_features.json"
        self.second: dict[str, Any] = json.loads(second.read_text()) if second.is_file() else {}
        self.tensors: dict[str, Tensor] = {}
        for file in sorted(folder.glob("*.safetensors")):
            if file.name != "clip.safetensors":
                self.tensors |= load_file(file)

    def error(self, key: str, ours: Tensor) -> float:
        """Difference to the golden value of a key, as its tolerance is meant.

        Largest absolute for logits, features and losses; relative for gradients, and for trained
        tensors relative to their change; `tip.search` has its own rule.
        """
        theirs = self.tensors[key]
        if key == "tip.search":  # accuracy in %: ours must reach the published grid's
            return max(0.0, float(theirs[2]) - float(ours))
        if theirs.shape != ours.shape:
            return float("inf")
        if key in SETS:
            return float(sorted(theirs.tolist()) != sorted(ours.tolist()))
        if not torch.equal(ours.isnan(), theirs.isnan()):
            return float("inf")
        ours, theirs = ours.nan_to_num(), theirs.nan_to_num()
        away = ours.double() - theirs.double()
        large = ".logits" in key or key.endswith("logits")
        if ".grad" in key or key.startswith(RELATIVE) or (large and theirs.abs().max() > 60):
            return float(away.norm() / theirs.double().norm().clamp(min=1e-30))
        if "trained" in key:
            start = self.start(key)
            return float(away.norm() / (theirs.double() - start.double()).norm())
        return float(away.abs().max())

    def start(self, key: str) -> Tensor:
        """Where the tensor of a trained key started."""
        if key == "tip_f.keys_trained":
            return self.tensors["support"]
        if key.startswith("prolip."):
            start = self.tensors["prolip.param.projection"]
            return start.T if key.endswith("trained.weight") else start
        if key.startswith("clip_adapter"):
            return self.tensors[key.replace(".trained.", ".")]
        return self.tensors[key.replace(".ctx_trained", ".ctx").replace(".trained.", ".param.")]

    def task(self) -> Task:
        """All images and names, for the methods that train on them."""
        meta, tensors = self.meta, self.tensors
        features = handful.Features.from_array(tensors["image_features"], self.backbone.fingerprint)
        names = tuple(name.replace("_", " ") for name in meta["class_names"])
        return Task(features, tensors["labels"], names, None, self.backbone.scale, self.backbone)


def gradient(parameter: nn.Parameter) -> Tensor:
    """Give what `backward` left."""
    assert parameter.grad is not None
    return parameter.grad

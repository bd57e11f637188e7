"""What GDA leaves: an affine function of unit features, beside the support set that it was made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from handful.heads import Head, HeadContext, check_rows, expect, number


@dataclass(frozen=True)
class DiscriminantHead(Head):
    """`norm(f) @ weight.T + bias`. Keys and labels stay so that classes and images can come and go."""

    kind: ClassVar[str] = "discriminant"
    class_weights: Tensor
    weight: Tensor
    bias: Tensor
    precision: Tensor
    keys: Tensor
    labels: Tensor
    scale: float

    @property
    def width(self) -> int:
        """E."""
        return self.weight.shape[1]

    def read(self, x: Tensor) -> Tensor:
        """Map raw features `[N, E]` to logits `[N, C]`."""
        return self.image_features(x) @ self.weight.T + self.bias

    def evidence(self, x: Tensor) -> Tensor:
        """What each image adds to its class's logit for a feature `[E]`: its part of `x P mu`, `[N]`."""
        counts = torch.bincount(self.labels, minlength=len(self.weight))
        return self.keys.mean(1) @ (self.precision @ F.normalize(x, dim=-1)) / counts[self.labels]

    def tensors(self) -> dict[str, Tensor]:
        """`class_weights [C, E]`, what is read, `weight [C, E]` and `bias [C]`, the weighted `precision [E,
        E]`, and the support set: `keys [N, V, E]`, every view of unit norm, and `labels [N]`."""
        return {
            "class_weights": self.class_weights, "weight": self.weight, "bias": self.bias,
            "precision": self.precision, "keys": self.keys, "labels": self.labels,
        }  # fmt: skip

    def settings(self) -> dict[str, Any]:
        """`scale`, the inverse temperature of the backbone."""
        return {"scale": self.scale}

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], settings: dict[str, Any], context: HeadContext) -> Self:
        """Check and build."""
        classes = len(context.class_names)
        expect(tensors, {
            "class_weights": (classes, "E"), "weight": (classes, "E"), "bias": (classes,),
            "precision": ("E", "E"), "keys": ("N", "V", "E"), "labels": ("N",),
        })  # fmt: skip
        check_rows(tensors["labels"], classes)
        return cls(**tensors, scale=number(settings, "scale"))

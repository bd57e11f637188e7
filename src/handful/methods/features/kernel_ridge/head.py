"""What a kernel ridge leaves: the text classifier, and what the support set adds to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch.nn.functional as F
from torch import Tensor

from handful.errors import CheckpointError
from handful.heads import Head, HeadContext, Shapes, check_rows, expect, flag, number

CHUNK = 16_384
"""Keys that are looked at together: bounds the memory."""


def kernel(x: Tensor, keys: Tensor, beta: float) -> Tensor:
    """`exp(-beta (1 - x . key))` between unit vectors; for `beta` 0 the linear kernel, `x . key`."""
    near = x @ keys.T
    return near if beta == 0 else near.sub_(1).mul_(beta).exp_()


@dataclass(frozen=True)
class RidgeHead(Head):
    """`s x T^T + k(x, keys) coefficients`; of a linear kernel `s x T^T + x weight^T`, the same.

    `plain` takes the cosines `x T^T` themselves in place of `s` times these.
    """

    kind: ClassVar[str] = "ridge"
    class_weights: Tensor
    keys: Tensor
    """`[N, V, E]`."""
    labels: Tensor
    parts: dict[str, Tensor]
    """`coefficients [N, V, C]`; of a linear kernel `weight [C, E]`, and each vector's coefficient for its own
    class, `shares [N, V]`."""
    scale: float
    beta: float
    plain: bool = False

    @property
    def width(self) -> int:
        """E."""
        return self.class_weights.shape[1]

    def read(self, x: Tensor) -> Tensor:
        """Map raw features `[N, E]` to logits `[N, C]`."""
        x = self.image_features(x)
        logits = (1.0 if self.plain else self.scale) * x @ self.class_weights.T
        if self.beta == 0:
            return logits + x @ self.parts["weight"].T
        every = self.keys.flatten(0, 1).split(CHUNK), self.parts["coefficients"].flatten(0, 1).split(CHUNK)
        for keys, coefficients in zip(*every, strict=True):
            logits = logits + kernel(x, keys, self.beta) @ coefficients
        return logits

    def evidence(self, x: Tensor) -> Tensor:
        """What each image adds to its class's logit for a feature `[E]`: `[N]`."""
        if self.beta == 0:
            own = self.parts["shares"]
        else:
            every = self.parts["coefficients"]
            own = every.gather(2, self.labels[:, None, None].expand(*every.shape[:2], 1))[:, :, 0]
        near = kernel(F.normalize(x, dim=-1)[None], self.keys.flatten(0, 1), self.beta)
        return (own * near.view_as(own)).sum(1)

    def tensors(self) -> dict[str, Tensor]:
        """`class_weights [C, E]`, `keys [N, V, E]` of unit norm, `labels [N]`, and what they add."""
        return {"class_weights": self.class_weights, "keys": self.keys, "labels": self.labels, **self.parts}

    def settings(self) -> dict[str, Any]:
        """`scale`, the inverse temperature; `beta`, 0 for a linear kernel; `plain`, if cosines stay
        cosines."""
        numbers = {"scale": self.scale, "beta": self.beta}
        return {**numbers, "plain": True} if self.plain else numbers

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], settings: dict[str, Any], context: HeadContext) -> Self:
        """Check and build."""
        classes, beta = len(context.class_names), number(settings, "beta")
        if beta < 0:
            raise CheckpointError(f"In the head's settings: got beta={beta:g}, expected a number >= 0.")
        own: Shapes = {"coefficients": ("N", "V", classes)}
        if beta == 0:
            own = {"weight": (classes, "E"), "shares": ("N", "V")}
        kept: Shapes = {"class_weights": (classes, "E"), "keys": ("N", "V", "E"), "labels": ("N",)}
        expect(tensors, {**kept, **own})
        check_rows(tensors["labels"], classes)
        text, keys, labels = (tensors[name] for name in kept)
        parts = {name: tensors[name] for name in own}
        return cls(text, keys, labels, parts, number(settings, "scale"), beta, flag(settings, "plain"))

"""The head of the blend: names, an adapter, a linear probe and a kernel ridge in one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from handful.convex.probe import class_confidence, default_strength
from handful.errors import CheckpointError
from handful.heads import Head, HeadContext, check_rows, expect, number
from handful.methods.features.auto.parts import NAMES, Parts, landmark_rows, near


@dataclass(frozen=True)
class BlendHead(Head):
    """`sum_h w_h Z_h(x)` of four parts, and the support set, which says why.

    What each part has learned is a sum over the support images: of the linear probe, at its minimum,
    `W - T = sum_i r_i x_i / (2 anchor)`, r_i what is still wrong with image i; of the adapter the same,
    and the ridge is one by definition. So every logit is a share of the names and one of each image.
    """

    kind: ClassVar[str] = "blend"
    class_weights: Tensor
    adapter: Tensor
    moved: Tensor
    coefficients: Tensor
    keys: Tensor
    labels: Tensor
    scale: float
    blend: tuple[float, ...]

    @cached_property
    def parts(self) -> Parts:
        """What the parts learned."""
        landmarks = self.keys[self.landmarks]
        return Parts(self.class_weights, self.scale, self.adapter, self.moved, landmarks, self.coefficients)

    @cached_property
    def landmarks(self) -> Tensor:
        """Rows of the keys that the coefficients are of, `[m]`."""
        return landmark_rows(self.labels, len(self.coefficients))

    @cached_property
    def linear(self) -> Tensor:
        """Names and linear probe together, `[C, E]`: what is linear in an image."""
        names, _, probe, _ = self.blend
        return self.scale * ((names + probe) * self.class_weights + probe * self.moved)

    @property
    def width(self) -> int:
        """E."""
        return self.class_weights.shape[1]

    def read(self, x: Tensor) -> Tensor:
        """Map raw features `[N, E]` to logits `[N, C]`."""
        x, (_, adapter, _, ridge) = F.normalize(x, dim=-1), self.blend
        logits = x @ self.linear.T
        if adapter:
            moved = F.normalize(x + x @ self.adapter, dim=-1)
            logits = logits + adapter * self.scale * moved @ self.class_weights.T
        if ridge and len(self.keys):
            said = near(x, self.parts.landmarks) @ self.coefficients
            logits = logits + ridge * (said - said.mean(1, keepdim=True))
        return logits

    def traceable(self) -> torch.nn.Module:
        """What is found once is a constant."""
        _ = self.linear, self.parts
        return super().traceable()

    def margin(self, x: Tensor, answer: int, rival: int) -> tuple[Tensor, Tensor]:
        """See `Head.margin`."""
        x, (names, adapter, probe, ridge) = F.normalize(x, dim=-1), self.blend
        between = self.class_weights[answer] - self.class_weights[rival]  # [E]
        length = (x + x @ self.adapter).norm().clamp(min=1e-12)
        said = self.scale * (names + probe + adapter / length) * (x @ between)
        images = x.new_zeros(len(self.keys))
        if not len(self.keys):
            return said, images
        cosines = self.keys @ x
        near_x = near(x[None], self.parts.landmarks)[0]
        images[self.landmarks] += (
            ridge * near_x * (self.coefficients[:, answer] - self.coefficients[:, rival])
        )
        wrong, pull = self._probe_residuals, self._anchors
        share = cosines * (wrong[:, answer] / pull[answer] - wrong[:, rival] / pull[rival])
        images += probe * _to_sum(share, self.scale * x @ (self.moved[answer] - self.moved[rival]))
        share = cosines * (self._adapter_residuals @ between)
        images += adapter * _to_sum(share, self.scale * (x @ self.adapter) @ between / length)
        return said, images

    @cached_property
    def _anchors(self) -> Tensor:
        confidence = class_confidence(self.scale * self.keys @ self.class_weights.T, self.labels)
        return (default_strength(self.labels, self.scale) * confidence).clamp(min=1e-12)

    @cached_property
    def _probe_residuals(self) -> Tensor:
        """What is still wrong with each image for the linear probe, `[N, C]`."""
        logits = self.scale * self.keys @ (self.class_weights + self.moved).T
        return F.one_hot(self.labels, logits.shape[1]) - logits.softmax(1)

    @cached_property
    def _adapter_residuals(self) -> Tensor:
        """The direction in which each image still pulls the adapter, `[N, E]`."""
        moved = self.keys + self.keys @ self.adapter
        length = moved.norm(dim=1, keepdim=True).clamp(min=1e-12)
        unit = moved / length
        chances = (self.scale * unit @ self.class_weights.T).softmax(1)
        pull = self.class_weights[self.labels] - chances @ self.class_weights
        return (pull - unit * (unit * pull).sum(1, keepdim=True)) / length

    def tensors(self) -> dict[str, Tensor]:
        """`class_weights`, `moved` `[C, E]`; `adapter [E, E]`; `coefficients [m, C]`; `keys`, `labels`."""
        return {
            "class_weights": self.class_weights, "adapter": self.adapter, "moved": self.moved,
            "coefficients": self.coefficients, "keys": self.keys, "labels": self.labels,
        }  # fmt: skip

    def settings(self) -> dict[str, Any]:
        """`scale`, and the weights of the parts."""
        return {"scale": self.scale, **dict(zip(NAMES, self.blend, strict=True))}

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], settings: dict[str, Any], context: HeadContext) -> Self:
        """Check and build."""
        classes = len(context.class_names)
        expect(tensors, {
            "class_weights": (classes, "E"), "adapter": ("E", "E"), "moved": (classes, "E"),
            "coefficients": ("M", classes), "keys": ("NK", "E"), "labels": ("NK",),
        })  # fmt: skip
        check_rows(tensors["labels"], classes)
        if len(tensors["coefficients"]) > len(tensors["labels"]):
            raise CheckpointError("The coefficients are not of the support images: the file is damaged.")
        return cls(
            **tensors, scale=number(settings, "scale"), blend=tuple(number(settings, name) for name in NAMES)
        )


def _to_sum(shares: Tensor, total: Tensor) -> Tensor:
    """Give what images say, known up to a factor, so that it adds up to what was learned.

    At an exact minimum a factor is enough. What a minimum that is not quite reached leaves is spread over the
    images by size.
    """
    sum_, size = shares.sum(), shares.abs().sum()
    if not size > 0:
        return (total / len(shares)).expand(len(shares))
    agree = bool(sum_ * total > 0) and bool(sum_.abs() > 0.1 * size)
    scaled = shares * (total / sum_ if agree else total.abs() / size)
    return scaled + (total - scaled.sum()) * shares.abs() / size

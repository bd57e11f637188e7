"""The head of the blend: names, an adapter, a linear probe and a kernel ridge in one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from handful.balance import image_weights, is_unequal
from handful.convex.adapter import span_of
from handful.convex.probe import class_confidence, default_strength
from handful.errors import CheckpointError
from handful.heads import Head, HeadContext, check_rows, expect, number
from handful.methods.features.auto.parts import NAMES, Parts, landmark_rows, near


@dataclass(frozen=True)
class BlendHead(Head):
    """`sum_h w_h Z_h(x)` of four parts, and the support set, which says why.

    What each part has learned is a sum over the support images: of the linear probe, at its minimum,
    `W - T = sum_i r_i x_i s / (2 N anchor)`, r_i what is still wrong with image i; of the adapter likewise,
    and the ridge is one by definition. So every logit is a part of the names and one of each image.
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
        """See `Head.margin`. An image speaks by how much nearer it is than the mean (`_by_images`)."""
        x, (names, adapter, probe, ridge) = F.normalize(x, dim=-1), self.blend
        between = self.class_weights[answer] - self.class_weights[rival]  # [E]
        length = (x + x @ self.adapter).norm().clamp(min=1e-12)
        said = self.scale * (names + probe + adapter / length) * (x @ between)
        images = x.new_zeros(len(self.keys))
        if not len(self.keys):
            return said, images
        cosines = self.keys @ x
        nearness = near(x[None], self.parts.landmarks)[0]
        learned = self.coefficients[:, answer] - self.coefficients[:, rival]
        images[self.landmarks] += ridge * _by_images(nearness, learned, nearness @ learned)
        learned = self._of_probe[:, answer] - self._of_probe[:, rival]
        total = self.scale * x @ (self.moved[answer] - self.moved[rival])
        images += probe * _by_images(cosines, self.scale * learned, total)
        learned = self._of_adapter @ between
        total = self.scale * (x @ self.adapter) @ between / length
        return said, images + adapter * _by_images(cosines, self.scale * learned / length, total)

    @cached_property
    def _weights(self) -> Tensor:
        """What each image weighs where classes count alike, `[N, 1]`."""
        unequal = is_unequal(self.labels)
        weights = image_weights(self.labels).float() if unequal else torch.ones(len(self.labels))
        return weights[:, None]

    @cached_property
    def _of_probe(self) -> Tensor:
        """What the linear probe learned of each image, `[N, C]`: `W - T` is `_of_probe^T keys`, nearly."""
        confidence = class_confidence(self.scale * self.keys @ self.class_weights.T, self.labels)
        anchors = (default_strength(self.labels, self.scale) * confidence).clamp(min=1e-12)
        logits = self.scale * self.keys @ (self.class_weights + self.moved).T
        wrong = self._weights * (F.one_hot(self.labels, logits.shape[1]) - logits.softmax(1)) / anchors
        return _fitted(wrong, wrong.T @ self.keys, self.moved)

    @cached_property
    def _of_adapter(self) -> Tensor:
        """What the adapter learned of each image, `[N, E]`: M is `keys^T _of_adapter`, nearly."""
        moved = self.keys + self.keys @ self.adapter
        length = moved.norm(dim=1, keepdim=True).clamp(min=1e-12)
        unit = moved / length
        chances = (self.scale * unit @ self.class_weights.T).softmax(1)
        pull = self.class_weights[self.labels] - chances @ self.class_weights
        pull = self._weights * (pull - unit * (unit * pull).sum(1, keepdim=True)) / length
        span = span_of(self.class_weights)
        pull = pull @ span @ span.T
        return _fitted(pull, self.keys.T @ pull, self.adapter)

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


def _fitted(pulls: Tensor, sum_: Tensor, learned: Tensor) -> Tensor:
    """Scale the pulls of images so that their sum is as near as can be to what was learned.

    At a minimum the factor is known, by the penalty; this is right short of it too.
    """
    return pulls * ((sum_ * learned).sum() / sum_.square().sum().clamp(min=1e-30)).clamp(min=0)


def _by_images(nearness: Tensor, learned: Tensor, total: Tensor) -> Tensor:
    """Give what each image says, `[N]`, of a total that is `nearness @ learned`, or nearly.

    All images are rather near to any other, and what that says cancels out: so it is what an image is nearer
    than the mean that counts. The rest is the same for each.
    """
    said = (nearness - nearness.mean()) * learned
    return said + (total - said.sum()) / len(said)

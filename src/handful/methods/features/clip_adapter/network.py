"""The network of CLIP-Adapter: a bottleneck of two linear layers on either side (Gao et al. 2021, §3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handful.heads import HeadContext, Shapes, TextHead, expect
from handful.search import best_ratio
from handful.selection import Validation

PARTS = ("down", "up", "ratio")
SIDES = {"image": ("image",), "text": ("text",), "both": ("image", "text")}
TOP, TEXT_RATIOS = 0.95, tuple(0.05 * step for step in range(20))
"""Largest ratio that a search gives (at 1 nothing of CLIP is left), and those of texts that it tries."""


class Adapter(nn.Module):
    """`norm(ratio A(f) + (1 - ratio) f)`, `A(f) = relu(relu(f W1) W2)`: equations 1 to 5, no biases.

    The second ReLU is in the published code, not in the article, and so is the order: blend first,
    normalise after. Only the direction of f matters, since A is positively homogeneous.

    `down [H, E]` and `up [E, H]`; the ratio of the adapter in the blend is 0 to 1, and with `learn_ratio` the
    start of `sigmoid(odds)`.
    """

    def __init__(self, down: Tensor, up: Tensor, ratio: float, learn_ratio: bool = False) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(down.clone()), nn.Parameter(up.clone())
        self.fixed = torch.tensor(float(ratio))
        self.odds = nn.Parameter(self.fixed.logit()) if learn_ratio else None

    @property
    def ratio(self) -> Tensor:
        """The ratio, fixed or learned."""
        return self.fixed if self.odds is None else self.odds.sigmoid()

    def read(self, x: Tensor) -> Tensor:
        """A alone: `[N, E]` to `[N, E]`, nowhere negative."""
        return F.relu(F.linear(F.relu(F.linear(x, self.down)), self.up))

    def forward(self, x: Tensor) -> Tensor:
        """Map features `[N, E]` to unit features `[N, E]`."""
        return F.normalize(self.ratio * self.read(x) + (1 - self.ratio) * x, dim=-1)


class Adapted(nn.Module):
    """Cosine logits between adapted images and adapted class weights; a side may have no adapter."""

    def __init__(self, sides: dict[str, Adapter], text: Tensor, scale: float) -> None:
        super().__init__()
        self.sides, self.scale = sides, scale
        self.trained, self.text = nn.ModuleDict(sides), F.normalize(text, dim=-1)

    def class_weights(self) -> Tensor:
        """`[C, E]`, rows of unit norm."""
        return self.sides.get("text", nn.Identity())(self.text)

    def forward(self, features: Tensor) -> Tensor:
        """Map features `[N, E]` to logits `[N, C]`."""
        image = self.sides.get("image", F.normalize)
        return self.scale * image(features) @ self.class_weights().T

    def learned(self) -> dict[str, Tensor]:
        """What was learned: `down`, `up` and `ratio` of each side."""
        found = {f"{name}.{part}": getattr(own, part) for name, own in self.sides.items() for part in PARTS}
        return {name: value.detach().clone() for name, value in found.items()}

    @torch.no_grad()
    def search(self, seen: Validation) -> float:
        """Set the ratios that are right most often on some images, and give how often that is. Without a
        norm, logits are linear in `ratio / (1 - ratio)` of images: exact, for each of TEXT_RATIOS."""
        x, best, found = F.normalize(seen.features, dim=-1), -1.0, dict[str, Tensor]()
        for text_ratio in TEXT_RATIOS if "text" in self.sides else (0.0,):
            if "text" in self.sides:
                self.sides["text"].fixed = torch.tensor(text_ratio)
            weights, odds = self.class_weights(), 0.0
            if "image" in self.sides:
                extra = self.sides["image"].read(x) @ weights.T
                odds, right = best_ratio(
                    x @ weights.T, extra, seen.labels, 0.0, TOP / (1 - TOP), seen.weights
                )
            else:
                right = seen.share((x @ weights.T).argmax(1) == seen.labels)
            if right > best:
                best = right
                found = {"image": torch.tensor(odds / (1 + odds)), "text": torch.tensor(text_ratio)}
        for name, adapter in self.sides.items():
            adapter.fixed = found[name]
        return best


@dataclass(frozen=True)
class AdapterHead(TextHead):
    """What stays: class weights, adapted already, and `down`, `up` and `ratio` of each side."""

    kind: ClassVar[str] = "adapter"

    @torch.no_grad()
    def image_features(self, x: Tensor) -> Tensor:
        """Send features through the image side's adapter, where there is one."""
        return adapters(self.learned).get("image", super().image_features)(x)

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], settings: dict[str, Any], context: HeadContext) -> Self:
        """Check the adapters' shapes against the class weights, and build."""
        sides = sorted({name.split(".")[0] for name in tensors.keys() - {"class_weights"}})
        expect(tensors, {"class_weights": (len(context.class_names), "E"), **shapes_of(sides, "H", "E")})
        return super().restore(tensors, settings, context)


def adapters(learned: dict[str, Tensor]) -> dict[str, Adapter]:
    """Build the adapters of each side from what was learned."""
    return {
        name: Adapter(learned[f"{name}.down"], learned[f"{name}.up"], float(learned[f"{name}.ratio"]))
        for name in SIDES["both"]
        if f"{name}.ratio" in learned
    }


def shapes_of(sides: Sequence[str], hidden: int | str, width: int | str) -> Shapes:
    """Shapes of the adapters' tensors."""
    shapes = {"down": (hidden, width), "up": (width, hidden), "ratio": ()}
    return {f"{side}.{part}": shape for side in sides for part, shape in shapes.items()}

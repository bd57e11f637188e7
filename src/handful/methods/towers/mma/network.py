"""MMA's adapters: Down and Up of each tower with one projection between them (Yang et al. 2024, §3.2)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handful.backbones import Backbone
from handful.backbones.tower import Tower
from handful.errors import CheckpointError
from handful.heads import HeadContext, Shapes, expect, number, without_class_weights
from handful.towers import After, PairHead, join
from handful.towers.pair import Pairs

SIDES = {"both": ("image", "text"), "image": ("image",), "text": ("text",)}


class ScaleGradient(torch.autograd.Function):
    """`forward x` on the way up, `backward` times the gradient on the way down."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: float, backward: float) -> Tensor:
        """Scale."""
        ctx.backward_factor = backward
        return x * forward

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Scale the gradient."""
        return gradients[0] * ctx.backward_factor, None, None


def scale_gradient(x: Tensor, forward: float, backward: float) -> Tensor:
    """Scale a tensor and its gradient by different factors."""
    scaled: Tensor = ScaleGradient.apply(x, forward, backward)
    return scaled


class ModalAdapters(nn.Module):
    """`y = Up_m(relu(Sh(relu(Down_m(ln_1(x))))))`, and a block gives `block(x) + alpha y`.

    x is the block's input and ln_1 its frozen first norm; Down and Up are each tower's own, Sh belongs
    to both (equations 4 to 6). The weights learn as if alpha were 1, and what flows back into x
    through the adapter is its true gradient: with alpha = 0.001 they would hardly move otherwise.

    Parameters
    ----------
    widths
        D of each side that has adapters.
    numbers
        The published numbers of the blocks.
    hidden
        H.
    alpha
        Of the adapter beside the block.
    shared
        Whether the sides share Sh.
    """

    def __init__(
        self, widths: dict[str, int], numbers: Sequence[int], hidden: int, alpha: float, shared: bool = True
    ) -> None:
        super().__init__()
        self.alpha = alpha

        def layers(inputs: int, outputs: int) -> nn.ModuleDict:
            return nn.ModuleDict({str(number): nn.Linear(inputs, outputs) for number in numbers})

        self.down = nn.ModuleDict({side: layers(width, hidden) for side, width in widths.items()})
        self.up = nn.ModuleDict({side: layers(hidden, width) for side, width in widths.items()})
        names = ["shared"] if shared else list(widths)
        self.middle = nn.ModuleDict({name: layers(hidden, hidden) for name in names})

    def reset(self, generator: torch.Generator) -> Self:
        """Draw all weights from N(0, 2 / outputs) (He et al. 2015, by fan-out); biases are 0."""
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.ndim == 1:
                    parameter.zero_()
                else:
                    drawn = torch.randn(parameter.shape, generator=generator)
                    parameter.copy_(drawn * (2 / len(parameter)) ** 0.5)
        return self

    def read(self, side: str, number: int, x: Tensor) -> Tensor:
        """Give y for normed tokens `[..., D]`."""
        key, middle = str(number), "shared" if "shared" in self.middle else side
        x = F.relu(self._layer(self.down, side, key)(x))
        x = F.relu(self._layer(self.middle, middle, key)(x))
        return self._layer(self.up, side, key)(x)

    def after(self, side: str, tower: Tower, pairs: Pairs) -> After:
        """What to do after blocks of a tower."""
        return {
            own[side]: partial(self._adapt, side, k, tower.blocks[own[side]].norm1)
            for k, own in pairs.items()
        }

    def _adapt(
        self, side: str, number: int, norm: nn.Module, entered: Tensor, left: Tensor, slots: Tensor
    ) -> Tensor:
        y = self.read(side, number, norm(scale_gradient(entered, 1.0, self.alpha)))
        return left + scale_gradient(y, self.alpha, 1.0)

    @staticmethod
    def _layer(layers: nn.ModuleDict, name: str, key: str) -> nn.Module:
        found: nn.Module = layers[name][key]  # type: ignore[index]
        return found


@dataclass(frozen=True)
class MmaHead(PairHead):
    """What stays: class weights, and the adapters, of which the image side's run at serving time."""

    kind: ClassVar[str] = "mma"
    alpha: float

    @property
    def changes_images(self) -> bool:
        """Whether the image tower has adapters."""
        return any(name.startswith("down.image.") for name in self.learned)

    def image_after(self, backbone: Backbone) -> After:
        """Put the adapters back after the blocks of the image tower."""
        sides, numbers, _ = layout(self.learned)
        towers = {side: getattr(backbone, side) for side in sides}
        adapters = rebuild(self.learned, self.alpha).to(backbone.device)
        return adapters.after("image", backbone.image, join("MMA", towers, numbers[0], numbers[-1]))

    def settings(self) -> dict[str, Any]:
        """`scale`, the inverse temperature, and `alpha`."""
        return super().settings() | {"alpha": self.alpha}

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], settings: dict[str, Any], context: HeadContext) -> Self:
        """Check the adapters' names and shapes against each other, and build."""
        learned, backbone = without_class_weights(tensors), context.backbone
        sides, numbers, shared = layout(learned)
        widths: dict[str, int | str] = {side: f"D of {side}" for side in sides}
        joint = "E" if backbone is None else backbone.joint_width
        weights: Shapes = {"class_weights": (len(context.class_names), joint)}
        expect(tensors, weights | shapes_of(widths, numbers, "H", shared))
        alpha = number(settings, "alpha")
        if alpha < 0:
            raise CheckpointError(f"Got alpha={alpha:g} in the head's settings, expected 0 or more.")
        return cls(tensors["class_weights"], number(settings, "scale"), learned, backbone, alpha)


def layout(learned: dict[str, Tensor]) -> tuple[list[str], list[int], bool]:
    """Read sides, numbers of blocks, and whether the projection is shared, from tensor names."""
    parts = [name.split(".") for name in learned]
    parts = [part for part in parts if len(part) == 4 and re.fullmatch("[0-9]{1,4}", part[2])]
    sides = sorted({part[1] for part in parts if part[0] == "down"} & set(SIDES["both"]))
    numbers = sorted({int(part[2]) for part in parts})
    if not sides or not numbers:
        raise CheckpointError(f"Got tensors {sorted(learned)[:4]}, expected adapters: down.image.5.weight.")
    return sides, numbers, any(part[1] == "shared" for part in parts)


def shapes_of(
    widths: Mapping[str, int | str], numbers: Sequence[int], hidden: int | str, shared: bool
) -> Shapes:
    """Shapes of the adapters' tensors."""
    found: Shapes = {}
    for k in numbers:
        for name in ["shared"] if shared else widths:
            found |= {f"middle.{name}.{k}.weight": (hidden, hidden), f"middle.{name}.{k}.bias": (hidden,)}
        for side, width in widths.items():
            found |= {f"down.{side}.{k}.weight": (hidden, width), f"down.{side}.{k}.bias": (hidden,)}
            found |= {f"up.{side}.{k}.weight": (width, hidden), f"up.{side}.{k}.bias": (width,)}
    return found


def rebuild(learned: dict[str, Tensor], alpha: float) -> ModalAdapters:
    """Build the adapters from what was learned."""
    sides, numbers, shared = layout(learned)
    widths = {side: learned[f"down.{side}.{numbers[0]}.weight"].shape[1] for side in sides}
    hidden = len(learned[f"down.{sides[0]}.{numbers[0]}.bias"])
    adapters = ModalAdapters(widths, numbers, hidden, alpha, shared)
    adapters.load_state_dict(learned)
    return adapters.requires_grad_(False)

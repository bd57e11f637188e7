"""Two towers with something added inside: adapters, deep prompts, updates of weights.

What is added is an `nn.Module` that says what happens `after` blocks of each side (`Sides`). Everything
else is here: the frozen lower part of the image tower computed once, the packed text pass, their joined
logits, and the head that stays, whose image side runs at serving time.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handful.backbones import Backbone
from handful.backbones.tower import Tower, at_depth
from handful.errors import ParameterError, check_integer, unexpected
from handful.heads import Needs, TextHead
from handful.towers.image import NO_SLOTS, ImagePass
from handful.towers.prefix import After, PrefixPass
from handful.towers.taps import PlainPass, Taps

Sides = Mapping[str, After]
"""What happens after blocks of `"image"`, of `"text"`, or of both."""
Pairs = dict[int, dict[str, int]]
"""By published number, counted from 1: the block of each side, counted from 0."""


def join(wanted_by: str, towers: dict[str, Tower], first: int, last: int | None) -> Pairs:
    """Say which blocks of two towers belong together: numbers of the shallower one, counted from 1.

    With n blocks in the shallower tower, number k stands for block `round(k N / n)` of a tower with
    N: the same share of its depth. ViT-L/14 has 24 and 12: number 5 joins image block 10 and text
    block 5. None for `last` is n.

    Raises
    ------
    SeamError
        A tower has no blocks (a ResNet).
    ParameterError
        `first` or `last` is no number of a block.
    """
    depths = {side: len(tower.require_blocks(wanted_by)) for side, tower in towers.items()}
    n = min(depths.values())
    last = n if last is None else check_integer("last_block", last, 1)
    if last > n:
        raise unexpected("last_block", last, f"1 to {n}: the shallower tower has as many blocks")
    if check_integer("first_block", first, 1) > last:
        raise unexpected("first_block", first, f"1 to {last}, the last block")
    return {k: {side: at_depth(k, n, N) - 1 for side, N in depths.items()} for k in range(first, last + 1)}


class ImageSide:
    """The image tower with what is added, from the first block that it is added to."""

    def __init__(self, backbone: Backbone, after: After) -> None:
        self.after, self.above = after, ImagePass(backbone, min(after))

    def enter(self, pixels: Tensor) -> Tensor:
        """Run pixels `[N, 3, H, W]` through what is frozen: tokens `[N, L, D]`."""
        return self.above.enter(pixels)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Give features `[N, E]` of tokens on their way into that block."""
        return self.above(tokens, self.after)


class TwoTowers(nn.Module):
    """Logits of images for class names, through towers with something added.

    Parameters
    ----------
    backbone
        Whose towers they are.
    text
        The prompts' pass through the text tower.
    added
        What is trained.
    after
        What it does after blocks; a side that is left out stays frozen.
    """

    def __init__(
        self, backbone: Backbone, text: PrefixPass | PlainPass, added: nn.Module, after: Sides
    ) -> None:
        super().__init__()
        self.text, self.added, self.scale = text, added, backbone.scale
        self.text_after = after.get("text", {})
        self.image = ImageSide(backbone, after["image"]) if "image" in after else None
        self._frozen: Tensor | None = None

    def class_weights(self) -> Tensor:
        """`[C, E]`, rows of unit norm; computed once where nothing is added to the text tower."""
        if self._frozen is not None:
            return self._frozen
        weights = F.normalize(self.text(after=self.text_after), dim=-1)
        if not self.text_after:
            self._frozen = weights
        return weights

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens on their way into the first changed block `[N, L, D]` to logits `[N, C]`.

        Where nothing is added to the image tower, x is the features `[N, E]`.
        """
        features = x if self.image is None else self.image(x)
        return self.scale * F.normalize(features, dim=-1) @ self.class_weights().T


@dataclass(frozen=True)
class PairHead(TextHead):
    """What stays: class weights, and what was learned, of which the image side runs at serving time."""

    backbone: Backbone | None = field(repr=False)

    @property
    def changes_images(self) -> bool:
        """Whether something is added to the image tower."""
        raise NotImplementedError

    def image_after(self, backbone: Backbone) -> After:
        """Rebuild what happens after blocks of the image tower from what was learned."""
        raise NotImplementedError

    @property
    def needs(self) -> Needs:
        """Pixels, where the image tower is changed."""
        return "pixels" if self.changes_images else "features"

    @cached_property
    def image(self) -> ImageSide:
        """The image tower with what is added."""
        backbone = loaded(self.backbone)
        return ImageSide(backbone, self.image_after(backbone))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "image"}

    @torch.no_grad()
    def image_features(self, x: Tensor) -> Tensor:
        """Give unit features of pixels `[N, 3, H, W]`, or of features where these are enough."""
        return F.normalize(self.image(self.image.enter(x)).cpu() if self.changes_images else x, dim=-1)

    def traceable(self) -> nn.Module:
        """Run the whole image tower, and what follows each changed block."""
        if not self.changes_images:
            return super().traceable()
        return PixelLogits(
            TappedTower(loaded(self.backbone), self.image.after), self.class_weights, self.scale
        )


def loaded(backbone: Backbone | None) -> Backbone:
    """Give the backbone that a head runs images through, or say that it is missing."""
    if backbone is None:
        raise ParameterError(
            "This classifier runs images through an image tower of its own: load it with its backbone, "
            "handful.load(path, backbone=...)."
        )
    return backbone


def image_encoder(backbone: Backbone) -> nn.Module:
    """Give the module that turns pixels `[N, 3, H, W]` into features `[N, E]`."""
    return cast(nn.Module, cast(Any, backbone.model).visual)


def encode_with(backbone: Backbone, weights: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """Encode pixels `[N, 3, H, W]` to raw features `[N, E]`, with other weights than the backbone's."""
    with backbone.autocast():
        features: Tensor = torch.func.functional_call(image_encoder(backbone), weights, (pixels,))
    return features.float()


def encoder_with(backbone: Backbone, weights: dict[str, Tensor]) -> nn.Module:
    """Give a copy of the image encoder with other weights; buffers are the backbone's."""
    visual = copy.deepcopy(image_encoder(backbone))
    visual.load_state_dict(weights, strict=False)
    return visual


class TappedTower(nn.Module):
    """The whole image tower with something after its blocks: pixels `[N, 3, H, W]` to features `[N, E]`."""

    def __init__(self, backbone: Backbone, after: After) -> None:
        super().__init__()
        self.visual, self.tower, self.after = image_encoder(backbone), backbone.image, after

    def forward(self, pixels: Tensor) -> Tensor:
        """Run it."""
        with Taps(self.tower) as taps:
            taps.put(self.after, NO_SLOTS)
            return self.visual(pixels)


class PixelLogits(nn.Module):
    """Cosine logits `[N, C]` of pixels `[N, 3, H, W]`, by an image encoder and class weights."""

    def __init__(self, visual: nn.Module, class_weights: Tensor, scale: float) -> None:
        super().__init__()
        self.visual, self.class_weights, self.scale = visual, class_weights, scale

    def forward(self, pixels: Tensor) -> Tensor:
        """`scale norm(f) W^T`."""
        return self.scale * F.normalize(self.visual(pixels), dim=-1) @ self.class_weights.T

"""The upper image pass: an image tower from the first block that anything learned can change.

What lies below is frozen, so the tokens that enter this block are a constant of each view, computed
once (`enter`). Above, everything is the tower's own computation, with less of it:

1. where the feature is read at the class token alone, the last block gives that token alone;
2. autograd keeps at most so many tokens at once, and runs the other images again in the backward.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from handful.backbones.base import Backbone
from handful.backbones.tower import Block, Tower
from handful.towers.prefix import After, limits, run_parts
from handful.towers.taps import Taps

NO_SLOTS = torch.tensor(-1)
"""Tokens of an image stand for no learned vector."""


class ImagePass:
    """Features of images, from the tokens that enter a block.

    Parameters
    ----------
    backbone
        One whose image tower has blocks.
    first
        The block, counted from 0.

    Raises
    ------
    SeamError
        The image tower has no blocks (a ResNet), or not so many.
    """

    def __init__(self, backbone: Backbone, first: int = 0) -> None:
        blocks = backbone.image.require_blocks("This")
        self.backbone, self.first = backbone, first
        self.part, self.kept = limits(backbone.device, self.tower.width, len(blocks) - first)

    @property
    def tower(self) -> Tower:
        """The image tower; never kept, so that a pass pickles as its backbone's name."""
        return self.backbone.image

    @torch.no_grad()
    def enter(self, pixels: Tensor) -> Tensor:
        """Run pixels `[N, 3, H, W]` up to the first block: tokens `[N, L, D]` in float32."""
        visual = cast(Any, self.backbone.model).visual
        with Taps(self.tower) as taps, self.backbone.autocast():
            tokens = taps.tokens_before(self.first, lambda: visual(pixels.to(self.backbone.device)))
        return tokens.float()

    def __call__(self, tokens: Tensor, after: After | None = None) -> Tensor:
        """Go on with tokens `[N, L, D]` to features `[N, E]`.

        Parameters
        ----------
        tokens
            As `enter` gives them.
        after
            What to do after a block, for adapters inside the tower. After the last block it sees only
            the tokens that the feature is read at.
        """
        groups = tokens.to(self.backbone.device).split(max(self.part // tokens.shape[1], 1))
        sizes = [group.shape[0] * group.shape[1] for group in groups]
        with self.backbone.autocast():
            found = run_parts(self._run, [(group, after or {}) for group in groups], sizes, self.kept)
        return torch.cat(found).float()

    def _run(self, x: Tensor, after: After) -> Tensor:
        blocks = self.tower.blocks
        for index in range(self.first, len(blocks)):
            alone = index == len(blocks) - 1 and self.tower.reads_first
            entered = x[:, :1] if alone else x
            x = blocks[index].finish(entered, attend(blocks[index], x, alone))
            if index in after:
                x = after[index](entered, x, NO_SLOTS.expand(x.shape[1]).to(x.device))
        assert self.tower.leave is not None  # a tower with blocks has it
        return self.tower.leave(x)


def attend(block: Block, x: Tensor, alone: bool) -> Tensor:
    """Let every token attend to all, or the first alone: `[N, L, D]` to `[N, L or 1, D]`."""
    x = block.norm1(x)
    weight, bias = block.qkv
    width = x.shape[-1]
    if alone:
        q = F.linear(x[:, :1], weight[:width], None if bias is None else bias[:width])
        k, v = F.linear(x, weight[width:], None if bias is None else bias[width:]).chunk(2, -1)
    else:
        q, k, v = F.linear(x, weight, bias).chunk(3, -1)
    heads = [part.unflatten(2, (block.heads, -1)).transpose(1, 2) for part in (q, k, v)]  # [N, H, L, d]
    return F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)

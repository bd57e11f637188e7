"""Inside the towers: the shared-prefix text pass, the upper image pass, the taps with the plain pass
through them, and two towers with something added."""

from __future__ import annotations

from torch import Tensor

from handful.backbones.base import Backbone
from handful.towers.image import ImagePass
from handful.towers.pair import ImageSide, PairHead, TwoTowers, join
from handful.towers.prefix import After, PrefixPass
from handful.towers.taps import PlainPass, Taps

__all__ = [
    "After",
    "ImagePass",
    "ImageSide",
    "PairHead",
    "PlainPass",
    "PrefixPass",
    "Taps",
    "TextPass",
    "TwoTowers",
    "join",
    "text_pass",
]

TextPass = PrefixPass | PlainPass
"""Called with learned vectors, gives text features."""


def text_pass(backbone: Backbone, tokens: Tensor, slots: Tensor) -> TextPass:
    """Choose the way through the text tower; which one is a fact of the tower.

    Parameters
    ----------
    backbone
        Any backbone.
    tokens
        `[P, L]`, as it tokenizes.
    slots
        `[P, L]`: j where learned vector j stands in the token's place, -1 elsewhere.
    """
    fast = backbone.text.causal and bool(backbone.text.blocks)
    return (PrefixPass if fast else PlainPass)(backbone, tokens, slots)

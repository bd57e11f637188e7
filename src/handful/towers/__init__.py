"""Inside the towers: the shared-prefix text pass, the upper image pass, and the taps with the
plain pass through them."""

from __future__ import annotations

from torch import Tensor

from handful.backbones.base import Backbone
from handful.towers.image import ImagePass
from handful.towers.prefix import PrefixPass
from handful.towers.taps import PlainPass, Taps

__all__ = ["ImagePass", "PlainPass", "PrefixPass", "Taps", "TextPass", "text_pass"]

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

"""Prompts written out in full, for exporters: the plain formula of a causal tower, cut at the longest end.

`handful.towers.prefix` shares what prompts begin with, for a batch whose size is known; here it is open.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from handful.backbones import Backbone
from handful.errors import ParameterError


class WrittenOut(nn.Module):
    """Contexts `[N, M, D]`, one for each image, to text features `[N, C, E]`.

    Parameters
    ----------
    backbone
        One whose text tower is a causal transformer.
    tokens, slots
        `[C, L]`, as `handful.prompts.with_context` gives them; the context stands at the same places in
        every prompt.

    Raises
    ------
    ParameterError
        The text tower is of another kind, so that prompts can't be cut at their end.
    """

    def __init__(self, backbone: Backbone, tokens: Tensor, slots: Tensor) -> None:
        super().__init__()
        tower = backbone.text
        if not tower.causal or not tower.blocks:
            raise ParameterError(
                "This method reads its prompts anew for each image, and this backbone's text tower is not a "
                "causal transformer of CLIP's kind: that can't be exported. Export a method whose text is "
                "computed once, as coop."
            )
        self.ends, columns = tower.ends(tokens), (slots[0] >= 0).nonzero()  # the context's, in every prompt
        start, stop, length = int(columns.min()), int(columns.max()) + 1, int(self.ends.max()) + 1
        words = cast(nn.Module, tower.embedding)(tokens[:, :length])  # [C, L, D]
        self.before, self.behind = words[:, :start].clone(), words[:, stop:].clone()
        self.places = cast(Tensor, tower.positions)[:length].clone()
        self.causal = torch.full((length, length), -torch.inf).triu(1)
        self.transformer = cast(nn.Module, tower.entry)
        self.final_norm, self.projection = cast(nn.Module, tower.final_norm), tower.projection

    def forward(self, contexts: Tensor) -> Tensor:
        """Run every prompt of every image to the longest end."""
        images, classes = contexts.shape[0], len(self.ends)
        parts = [
            self.before.expand(images, -1, -1, -1),
            contexts[:, None].expand(-1, classes, -1, -1),
            self.behind.expand(images, -1, -1, -1),
        ]
        x = (torch.cat(parts, 2) + self.places).flatten(0, 1)  # [N C, L, D]
        x = self.transformer(x, attn_mask=self.causal).unflatten(0, (images, classes))
        x = self.final_norm(x[:, torch.arange(classes), self.ends])
        if isinstance(self.projection, nn.Module):
            return self.projection(x)
        return x if self.projection is None else x @ self.projection

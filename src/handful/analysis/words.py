"""Which words are nearest to learned context vectors (Zhou et al. 2022a, §4.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from handful.backbones import Backbone
from handful.errors import ParameterError, check_integer, unexpected
from handful.estimator import FewShotClassifier

CHUNK = 64
"""Context vectors whose distances to all tokens are in memory together."""
UNREADABLE = "N/A"


@dataclass(frozen=True)
class Neighbour:
    """A token near a context vector.

    Attributes
    ----------
    word
        The token written out, or N/A for one that is no readable text.
    distance
        Euclidean, between the vector and the token's embedding.
    sharing
        How many tokens have this very embedding: more than one where training never separated them.
    """

    word: str
    distance: float
    sharing: int = 1

    def __str__(self) -> str:
        others = f" and {self.sharing - 1:,} others alike" if self.sharing > 1 else ""
        return f"{self.word}{others} {self.distance:.3f}"


def nearest_words(backbone: Backbone, context: Tensor, top: int = 3) -> list[list[Neighbour]]:
    """Find the tokens nearest to each context vector, over the whole vocabulary of the backbone.

    Parameters
    ----------
    backbone
        The one that the context was learned for.
    context
        `[M, D]`.
    top
        How many tokens for each vector.
    """
    table = cast(Tensor, backbone.text.embedding.weight).detach().float().cpu()  # type: ignore[union-attr]
    check_integer("top", top, 1)
    if context.ndim != 2 or context.shape[1] != table.shape[1] or not torch.isfinite(context).all():
        raise unexpected(
            "context", list(context.shape), f"finite vectors [M, {table.shape[1]}] of this backbone"
        )
    whole_rows = table.numpy().view(np.dtype((np.void, table.shape[1] * 4)))[:, 0]
    _, first, counts = np.unique(whole_rows, return_index=True, return_counts=True)
    vectors, top = table[first], min(top, len(first))
    found: list[list[Neighbour]] = []
    for part in context.float().split(CHUNK):
        distances = torch.cdist(part, vectors, compute_mode="donot_use_mm_for_euclid_dist")
        for near, away in zip(*distances.topk(top, largest=False)[::-1], strict=True):
            words = [_written(backbone, int(first[row])) for row in near.tolist()]
            sharing = [int(counts[row]) for row in near.tolist()]
            found.append([Neighbour(*each) for each in zip(words, away.tolist(), sharing, strict=True)])
    return found


def explain_context(clf: FewShotClassifier, top: int = 3) -> dict[str, list[list[Neighbour]]]:
    """Give the nearest words of a fitted CoOp's or CoCoOp's context, by class where it has one each.

    Returns
    -------
    words
        Under "" for a context of all classes, under each class's name for class-specific ones.

    Raises
    ------
    ParameterError
        The classifier learned no context.
    """
    context, backbone = clf.head_.tensors().get("context"), clf.loaded_backbone()
    if context is None:
        raise ParameterError(
            f"This is a {clf.method} classifier, and it learned no words. Explain one that was fitted with "
            "coop or cocoop."
        )
    if context.ndim == 2:
        return {"": nearest_words(backbone, context, top)}
    found, length = nearest_words(backbone, context.flatten(0, 1), top), context.shape[1]
    return {name: found[i * length : (i + 1) * length] for i, name in enumerate(clf.class_names_)}


def _written(backbone: Backbone, token: int) -> str:
    text = backbone.token_text(token)
    return text if text and text.isprintable() and "�" not in text else UNREADABLE

"""The channels that tell classes apart, and a cache that compares them (Zhu et al. 2023, §3.1 and code)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from handful.cache import CacheHead, cache_shapes, restored
from handful.errors import CheckpointError, check_integer, check_number, unexpected
from handful.heads import HeadContext, expect

EPSILON = 1e-6
"""Of the published divergence, which has it inside both logarithms."""


def channel_similarity(text: Tensor, keys: Tensor, labels: Tensor, balance: bool = True) -> Tensor:
    """Give how alike classes are in each channel, `[E]`: the mean product of vectors of different classes.

    A class's vectors are its row of `text [C, E]` and its `keys [N, E]`. The published double loop, exactly:
    with `s_k` the sum of class k's `n_k` vectors and `s` that of all, ordered pairs of other classes add up
    to `s^2 - sum_k s_k^2`, and are `(sum_k n_k)^2 - sum_k n_k^2`. With `balance` each pair of classes counts
    alike: the same with means in the place of sums. Equal classes have the same similarity either way.
    """
    sums = text.double().index_add(0, labels, keys.double())
    counts = 1 + torch.bincount(labels, minlength=len(text)).double()
    if balance:
        sums, counts = sums / counts[:, None], torch.ones_like(counts)
    pairs = counts.sum().square() - counts.square().sum()
    return ((sums.sum(0).square() - sums.square().sum(0)) / pairs.clamp(min=1)).float()


def choose_channels(text: Tensor, similarity: Tensor, count: int, variance: float) -> Tensor:
    """Give the channels of largest `variance Var_c(text) - (1 - variance) similarity`, `[count]`."""
    spread = text.var(0) if len(text) > 1 else torch.zeros_like(similarity)
    return (variance * spread - (1 - variance) * similarity).topk(count).indices


def divergence(cosines: Tensor, labels: Tensor) -> Tensor:
    """Give `KL_i = sum_c y_ic log2((y_ic + 1e-6) / (p_ic + 1e-6))`, `[N]`, p the softmax of cosines `[N, C]`.

    As published there is no temperature: p is nearly uniform, and the divergence nearly `log2 C`.
    """
    own = cosines.softmax(1).gather(1, labels[:, None])[:, 0]
    return torch.log2((1 + EPSILON) / (own + EPSILON))


@dataclass(frozen=True)
class ChannelCacheHead(CacheHead):
    """A cache that compares the chosen channels of query and keys, each cut vector scaled to unit length."""

    kind: ClassVar[str] = "channel-cache"
    channels: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    def compared(self, x: Tensor) -> Tensor:
        """Give the channels of unit vectors `[..., E]`, at unit length: `[..., Q]`."""
        return F.normalize(x[..., self.channels], dim=-1)

    @cached_property
    def compared_keys(self) -> Tensor:
        """The channels of the keys, `[NK, Q]`."""
        return self.compared(self.keys)

    def tensors(self) -> dict[str, Tensor]:
        """Those of a cache, `strengths [NK]` among them, and `channels [Q]` (int64)."""
        return super().tensors() | {"channels": self.channels}

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], settings: dict[str, Any], context: HeadContext) -> Self:
        """Check and build."""
        expect(tensors, cache_shapes(len(context.class_names), tensors) | {"channels": ("Q",)})
        channels, width = tensors["channels"], tensors["keys"].shape[1]
        if not len(channels) or channels.min() < 0 or channels.max() >= width:
            raise CheckpointError(f"The channels leave 0 to {width - 1}: the file is damaged.")
        return cls(**restored(tensors, settings, context), channels=channels)


def channel_count(channels: object, width: int) -> int:
    """Give Q for a whole number, or a share of `width`."""
    if isinstance(channels, Integral) and not isinstance(channels, bool):
        if check_integer("channels", channels, 1) > width:
            raise unexpected("channels", channels, f"a whole number up to {width}, or a share up to 1")
        return int(channels)
    return max(round(share("channels", channels) * width), 1)


def share(name: str, value: object) -> float:
    """Give a number from 0 to 1."""
    number = check_number(name, value, 0)
    if number > 1:
        raise unexpected(name, value, "a number from 0 to 1")
    return number

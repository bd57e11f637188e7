"""Caches that fill while a stream of unlabelled images is read (Karmanov et al. 2024, TDA)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from handful.cache import CacheHead, affinity, cache_shapes, restored
from handful.errors import CheckpointError, ParameterError, check_integer
from handful.heads import HeadContext, Shapes, Support, check_rows, expect, number

NEGATIVE = ("negative_alpha", "negative_beta", "entropy_low", "entropy_high", "mask_low", "mask_high")


class Said(NamedTuple):
    """What zero-shot says of N images, by their confident views: the mean of these as a query `[N, E]`, of
    their logits `[N, C]` and probabilities `[N, C]`, and the entropy of the latter `[N]`, in nats."""

    query: Tensor
    logits: Tensor
    probabilities: Tensor
    entropy: Tensor


@dataclass
class Memory:
    """Images that a stream keeps of each class that they were taken for: at most a capacity, the surest
    ones."""

    keys: Tensor
    """`[n, E]`."""
    labels: Tensor
    """`[n]`."""
    entropy: Tensor
    """`[n]`, in nats."""
    probabilities: Tensor
    """`[n, C]`; `[n, 0]` where they are not needed."""

    @classmethod
    def empty(cls, width: int, classes: int) -> Memory:
        """Give one without images."""
        none = torch.zeros(0, dtype=torch.int64)
        return cls(torch.zeros(0, width), none, torch.zeros(0), torch.zeros(0, classes))

    def insert(
        self, capacity: int, key: Tensor, label: Tensor, entropy: Tensor, probabilities: Tensor
    ) -> None:
        """Take an image in; where its class is full, in place of the least sure one, if that is less sure."""
        rows = (self.labels == label).nonzero()[:, 0]
        if len(rows) < capacity:
            self.keys, self.labels = torch.cat([self.keys, key[None]]), torch.cat([self.labels, label[None]])
            self.entropy = torch.cat([self.entropy, entropy[None]])
            self.probabilities = torch.cat([self.probabilities, probabilities[None]])
        elif capacity:
            worst = rows[self.entropy[rows].argmax()]
            if entropy < self.entropy[worst]:
                self.keys[worst], self.entropy[worst] = key, entropy
                self.probabilities[worst] = probabilities

    def copy(self) -> Memory:
        """Give a copy, by class and then entropy."""
        order = self.entropy.argsort(stable=True)
        order = order[self.labels[order].argsort(stable=True)]
        return Memory(self.keys[order], self.labels[order], self.entropy[order], self.probabilities[order])


@dataclass(frozen=True)
class StreamHead(CacheHead):
    """Tip-Adapter's cache of labelled images, if any, and the positive and negative caches of a stream.

    `read` takes each image alone, with the caches as they are; a `reader` takes a series of images in, one by
    one, and answers each with the caches that then are.
    """

    kind: ClassVar[str] = "stream"
    capacity: int = 3
    negative_capacity: int = 2
    negative_alpha: float = 0.117
    negative_beta: float = 1.0
    entropy_low: float = 0.2
    entropy_high: float = 0.5
    mask_low: float = 0.03
    mask_high: float = 1.0
    kept_views: float = 0.1
    positive: Memory | None = None
    negative: Memory | None = None

    @property
    def reads_views(self) -> bool:
        """It looks for the confident ones."""
        return True

    @property
    def support(self) -> Support | None:
        """The labelled images, where there are any."""
        return Support(self.keys, self.labels) if len(self.keys) else None

    def image_features(self, x: Tensor) -> Tensor:
        """Give unit image features `[N, E]`, of views `[N, V, E]` of their mean."""
        return F.normalize(x.mean(1) if x.ndim == 3 else x, dim=-1)

    def say(self, x: Tensor) -> Said:
        """Read images `[N, E]` or views `[N, V, E]` by zero-shot: of the views, the share of least
        entropy."""
        x = F.normalize(x if x.ndim == 3 else x[:, None], dim=-1)
        logits = self.scale * x @ self.class_weights.T  # [N, V, C]
        if x.shape[1] > 1:
            log_p = logits.log_softmax(-1)
            order = -(log_p.exp() * log_p).sum(-1)
            kept = order.argsort(1)[:, : max(int(self.kept_views * x.shape[1]), 1), None]
            x, logits = x.take_along_dim(kept, 1), logits.take_along_dim(kept, 1)
        log_p = logits.log_softmax(-1).logsumexp(1) - math.log(x.shape[1])
        return Said(x.mean(1), logits.mean(1), log_p.exp(), -(log_p.exp() * log_p).sum(1))

    def read(self, x: Tensor) -> Tensor:
        """Map raw features `[N, E]`, or views `[N, V, E]`, to logits `[N, C]`, each image alone."""
        said = self.say(x)
        return self.answer(said, self.positive, self.negative)

    def answer(self, said: Said, positive: Memory | None, negative: Memory | None) -> Tensor:
        """Give logits `[N, C]` by some caches: zero-shot, plus the positive ones, less the negative one."""
        return (
            said.logits + self.alpha * self.cache(said.query) + self.streamed(said.query, positive, negative)
        )

    def streamed(self, query: Tensor, positive: Memory | None, negative: Memory | None) -> Tensor:
        """Give what the caches of the stream add to logits, `[N, C]`."""
        added = query.new_zeros(len(query), len(self.class_weights))
        if positive is not None and len(positive.keys):
            near = affinity(query @ positive.keys.T, self.beta)
            added = added.index_add(1, positive.labels, self.alpha * near)
        if negative is not None and len(negative.keys):
            probabilities = negative.probabilities
            mask = (probabilities > self.mask_low) & (probabilities < self.mask_high)
            near = affinity(query @ negative.keys.T, self.negative_beta)
            added = added - self.negative_alpha * near @ mask.to(near.dtype)
        return added

    def reader(self) -> Stream:
        """Give what reads a stream from these caches on; they stay as they are."""
        return Stream(self)

    def evidence(self, x: Tensor) -> Tensor:
        """What each labelled image adds to its class's logit for `[E]` or views `[V, E]`: `[NK]`."""
        return super().evidence(self.image_features(x[None])[0])

    def tensors(self) -> dict[str, Tensor]:
        """Those of a cache; `positive.` and `negative.` `keys [n, E]`, `labels [n]`, `entropy [n]`, and
        `negative.probabilities [n, C]`."""
        found = super().tensors()
        for name, memory in (("positive", self.positive), ("negative", self.negative)):
            if memory is not None and len(memory.keys):
                found |= {f"{name}.{part}": getattr(memory, part) for part in ("keys", "labels", "entropy")}
                found |= {"negative.probabilities": memory.probabilities} if name == "negative" else {}
        return found

    def settings(self) -> dict[str, Any]:
        """Those of a cache, and the rules of the stream."""
        names = ("capacity", "negative_capacity", *NEGATIVE, "kept_views")
        return super().settings() | {name: getattr(self, name) for name in names}

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], settings: dict[str, Any], context: HeadContext) -> Self:
        """Check and build."""
        classes = len(context.class_names)
        shapes: Shapes = cache_shapes(classes, tensors)
        for name in ("positive", "negative"):
            if f"{name}.keys" in tensors:
                n = name.upper()
                shapes |= {f"{name}.keys": (n, "E"), f"{name}.labels": (n,), f"{name}.entropy": (n,)}
                shapes |= {"negative.probabilities": (n, classes)} if name == "negative" else {}
        expect(tensors, shapes)
        found: dict[str, Any] = {name: number(settings, name) for name in (*NEGATIVE, "kept_views")}
        found |= {name: _whole(settings, name) for name in ("capacity", "negative_capacity")}
        for name in ("positive", "negative"):
            if f"{name}.keys" in tensors:
                keys, labels, entropy = (tensors[f"{name}.{part}"] for part in ("keys", "labels", "entropy"))
                check_rows(labels, classes)
                found[name] = Memory(keys, labels, entropy, tensors.get(f"{name}.probabilities", keys[:, :0]))
        return cls(**restored(tensors, settings, context), **found)


class Stream:
    """Reads images one after the other, and keeps those that tell most."""

    def __init__(self, head: StreamHead) -> None:
        classes, width = head.class_weights.shape
        self.start = head
        self.positive = Memory.empty(width, 0) if head.positive is None else head.positive.copy()
        self.negative = Memory.empty(width, classes) if head.negative is None else head.negative.copy()
        self.largest = math.log2(max(classes, 2))

    @property
    def head(self) -> StreamHead:
        """The head with the caches as they are now."""
        return replace(self.start, positive=self.positive.copy(), negative=self.negative.copy())

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Read images `[N, E]` or views `[N, V, E]` in order, and give their logits `[N, C]`.

        Each is taken in before it is answered, so that it sees itself (published code).
        """
        head, said, added = self.start, self.start.say(x), list[Tensor]()
        taken_for = said.logits.argmax(1)
        for row, (query, probabilities, entropy) in enumerate(
            zip(said.query, said.probabilities, said.entropy, strict=True)
        ):
            label = taken_for[row]
            self.positive.insert(head.capacity, query, label, entropy, probabilities[:0])
            if head.entropy_low < float(entropy) / self.largest < head.entropy_high:
                self.negative.insert(head.negative_capacity, query, label, entropy, probabilities)
            added.append(head.streamed(query[None], self.positive, self.negative))
        return said.logits + head.alpha * head.cache(said.query) + torch.cat(added)


def _whole(settings: dict[str, Any], name: str) -> int:
    """Give a whole number of a head's settings."""
    try:
        return check_integer(name, settings.get(name), 0)
    except ParameterError as error:
        raise CheckpointError(f"In the head's settings: {error}") from error

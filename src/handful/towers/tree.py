"""Prompts as a tree: what prompts have in common is one node, computed once.

Two prompts that start with the same tokens have the same states there in every layer of a causal
tower, so all prompts together are a tree of (token, position) nodes. The nodes that every prompt
begins with are its trunk; the rest is packed into bins of equal length, whole branches to a bin, so
that one dense attention over `[G, L]` serves branches of all lengths without padding each of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BIN = 64
"""Nodes that attend in one piece: longer wastes attention, shorter wastes keys of the trunk."""

Keys = list[int]
"""A prompt: its tokens up to its end, a learned vector j as `-1 - j`."""


@dataclass(frozen=True)
class Tree:
    """P prompts as N nodes: first the trunk, S nodes, then G bins of L nodes.

    Attributes
    ----------
    tokens, slots, positions
        `[N]`: token, learned vector (-1 for none) and place in the prompt. What fills up a bin is
        token 0 at place 0, which nobody reads.
    sees
        `[G, 1, L, S + L]`, true where a node (row) attends to a trunk or bin node (column): its
        ancestors and itself.
    ends
        `[P]`: the node at which each prompt's feature is read.
    rows
        `[P]`: which prompts these are.
    learned
        The nodes that hold a learned vector.
    trunk
        S.
    """

    tokens: Tensor
    slots: Tensor
    positions: Tensor
    sees: Tensor
    ends: Tensor
    rows: Tensor
    learned: Tensor
    trunk: int

    @property
    def bins(self) -> tuple[int, int]:
        """G and L."""
        return self.sees.shape[0], self.sees.shape[2]

    def __len__(self) -> int:
        return len(self.tokens)

    def to(self, device: torch.device) -> Tree:
        """Move to a device."""
        tensors = {key: part.to(device) for key, part in vars(self).items() if isinstance(part, Tensor)}
        return Tree(**tensors, trunk=self.trunk)


def grow(tokens: Tensor, slots: Tensor, ends: Tensor, most: int) -> list[Tree]:
    """Turn prompts into trees of at most `most` nodes each (more only for a lone long prompt).

    Parameters
    ----------
    tokens, slots
        `[P, L]`: tokens, and the learned vector that stands in a token's place (-1: none).
    ends
        `[P]`: the position at which each prompt's feature is read.
    most
        Nodes of a tree.
    """
    keys = torch.where(slots >= 0, -1 - slots, tokens).tolist()
    prompts = [key[: end + 1] for key, end in zip(keys, ends.tolist(), strict=True)]
    trunk = prompts[0][: common(min(prompts), max(prompts))]
    trunk = trunk[: min(map(len, prompts)) - 1]  # every prompt keeps a node of its own to be read at
    branches = list(_branches(prompts, len(trunk)))
    trees, start, nodes = [], 0, 0
    for stop, (_, size) in enumerate(branches):
        if nodes + size > most and stop > start:
            trees.append(_plant(prompts, trunk, branches[start:stop]))
            start, nodes = stop, 0
        nodes += size
    return [*trees, _plant(prompts, trunk, branches[start:])]


def common(one: Keys, other: Keys) -> int:
    """Length of what two prompts begin with together."""
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index
    return min(len(one), len(other))


def _branches(prompts: Sequence[Keys], trunk: int) -> Iterator[tuple[list[int], int]]:
    """Group the prompts that share their first node after the trunk: rows, and nodes they make.

    A group that outgrows a bin is cut, and what the two pieces share is computed in both.
    """
    group: list[int] = []
    size = 0
    for row in sorted(range(len(prompts)), key=lambda row: prompts[row]):
        shared = max(common(prompts[group[-1]], prompts[row]) - trunk, 0) if group else 0
        own = len(prompts[row]) - trunk
        if group and (not shared or size + own - shared > BIN):
            yield group, size
            group, size, shared = [], 0, 0
        group.append(row)
        size += own - shared
    yield group, size


def _pack(sizes: Sequence[int]) -> tuple[list[int], int, int]:
    """Assign items to G bins of the smallest L that they fit into: (bin of each item, G, L)."""
    count = math.ceil(sum(sizes) / max(BIN, *sizes))
    order = sorted(range(len(sizes)), key=lambda item: -sizes[item])
    length = max(math.ceil(sum(sizes) / count), *sizes)
    while True:  # first fit, the longest first
        room, place = [length] * count, [-1] * len(sizes)
        for item in order:
            place[item] = next((b for b in range(count) if room[b] >= sizes[item]), -1)
            if place[item] < 0:
                break
            room[place[item]] -= sizes[item]
        else:
            return place, count, length
        length += 1


def _plant(prompts: Sequence[Keys], trunk: Keys, branches: Sequence[tuple[list[int], int]]) -> Tree:
    """Lay the trunk and the branches out as nodes."""
    place, count, length = _pack([size for _, size in branches])
    stem = len(trunk)
    keys, positions = [*trunk, *[0] * (count * length)], [*range(stem), *[0] * (count * length)]
    sees = torch.eye(length, dtype=torch.bool).repeat(count, 1, 1)  # what fills up sees itself
    used, ends = [0] * count, {}
    for (rows, _), bin_ in zip(branches, place, strict=True):
        path: list[int] = []  # nodes of the prompt before, within the bin
        last: Keys = []
        for row in rows:
            prompt = prompts[row][stem:]
            path = path[: common(last, prompt)]
            for depth in range(len(path), len(prompt)):
                node = used[bin_]
                used[bin_] += 1
                if path:
                    sees[bin_, node] |= sees[bin_, path[-1]]
                keys[stem + bin_ * length + node] = prompt[depth]
                positions[stem + bin_ * length + node] = stem + depth
                path.append(node)
            last, ends[row] = prompt, stem + bin_ * length + path[-1]
    marks = torch.tensor(keys)
    return Tree(
        tokens=marks.clamp(min=0),
        slots=torch.where(marks < 0, -1 - marks, -1),
        positions=torch.tensor(positions),
        sees=torch.cat([torch.ones(count, length, stem, dtype=torch.bool), sees], dim=2)[:, None],
        ends=torch.tensor(list(ends.values())),
        rows=torch.tensor(list(ends)),
        learned=(marks < 0).nonzero()[:, 0],
        trunk=stem,
    )

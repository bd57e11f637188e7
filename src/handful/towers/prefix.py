"""The shared-prefix text pass: why prompt learning here is many times faster than published.

CLIP's text tower is causal, so a position never sees what comes after it. Therefore, exactly:

1. nothing after the end of a text matters: each prompt runs to its own end, not to 77;
2. what prompts begin with together is computed once (`handful.towers.tree`), and autograd sums the
   gradients of all classes into it;
3. linear layers see packed nodes, and only attention knows which node belongs to which prompt;
4. after the attention of the last block only the ends go on;
5. what the first block projects from frozen tokens is a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from handful.backbones.base import Backbone
from handful.backbones.tower import Block, Tower
from handful.errors import unexpected
from handful.towers.tree import Tree, grow

After = Mapping[int, Callable[[Tensor, Tensor, Tensor], Tensor]]
"""By block: a function of a block's input and output tokens `[B, N, D]` and of their slots that gives a new
output. Slots `[N]` (or `[B, N]`) say which learned vector a token stands for, -1 for none, so that a deep
prompt can replace it after every block."""

FLOATS = 24
"""Numbers, in tower widths, that autograd keeps of a token in a block."""
LIMITS = {"cpu": (1024, 1536 * 2**20)}
OTHER_LIMITS = (65536, 16 * 2**30)
"""By device: tokens that go through the tower together (on a CPU, larger tensors leave its cache and the
allocator's pool), and bytes that a pass keeps for its backward; parts beyond them are computed again."""


class PrefixPass:
    """Text features of P prompts of a causal tower, from the learned vectors in them.

    Parameters
    ----------
    backbone
        One whose text tower is causal and has blocks.
    tokens
        `[P, L]`, as the backbone tokenizes.
    slots
        `[P, L]`: j where learned vector j stands in the token's place, -1 elsewhere.
    """

    def __init__(self, backbone: Backbone, tokens: Tensor, slots: Tensor) -> None:
        self.backbone = backbone
        self.part, self.kept = limits(backbone.device, self.tower.width, len(self.tower.blocks))
        trees = grow(tokens, slots, self.tower.ends(tokens), self.part)
        self.trees = [tree.to(backbone.device) for tree in trees]
        self.order = torch.cat([tree.rows for tree in self.trees]).argsort()
        self._first: dict[int, tuple[list[tuple[Tensor, int]], Tensor]] = {}
        self._below: dict[tuple[int, int], tuple[list[tuple[Tensor, int]], Tensor]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_first": {}, "_below": {}}  # both are made again

    @property
    def tower(self) -> Tower:
        """The text tower; never kept, so that a pass pickles as its backbone's name."""
        return self.backbone.text

    def __call__(self, learned: Tensor | None = None, after: After | None = None) -> Tensor:
        """Give features `[P, E]` for learned vectors `[W, D]`, `[B, P, E]` for `[B, W, D]`.

        Parameters
        ----------
        learned
            The vectors; None for prompts without any. A batch of them gives every prompt B times,
            with the vectors of one image each (CoCoOp).
        after
            What to do after a block, for adapters inside the tower. Where nothing is learned in the
            prompts, the blocks below the first of these run once for all calls.
        """
        batch = learned[None] if learned is not None and learned.ndim == 2 else learned
        groups = [None] if batch is None else batch.split(max(self.part // len(self.trees[0]), 1))
        parts = [(number, group, after or {}) for group in groups for number in range(len(self.trees))]
        sizes = [len(self.trees[n]) * (1 if group is None else len(group)) for n, group, _ in parts]
        with self.backbone.autocast():
            found = run_parts(self._run, parts, sizes, self.kept)
        rows = [torch.cat(found[i : i + len(self.trees)], 1) for i in range(0, len(found), len(self.trees))]
        features = torch.cat(rows)[:, self.order].float()
        return features if learned is not None and learned.ndim == 3 else features[0]

    def _run(self, number: int, learned: Tensor | None, after: After) -> Tensor:
        """Run one tree through the tower: `[B, P, E]`."""
        tree = self.trees[number]
        first = min(after, default=0) if learned is None else 0
        x = self._frozen(number, first) if first else self._embed(tree, learned)  # [B, N, D]
        x = self._climb(number, x, range(first, len(self.tower.blocks)), after)
        x = cast(nn.Module, self.tower.final_norm)(x)
        to_joint = self.tower.projection
        if isinstance(to_joint, nn.Module):
            return to_joint(x)
        return x if to_joint is None else x @ to_joint

    def _climb(self, number: int, x: Tensor, indices: range, after: After) -> Tensor:
        """Run some blocks; after the last one of the tower only the ends of the prompts go on."""
        tree, last = self.trees[number], len(self.tower.blocks) - 1
        for index in indices:
            block = self.tower.blocks[index]
            qkv = project(block, x) if index else self._project_first(block, x, number)
            entered, attended, slots = x, attend(qkv, block.heads, tree), tree.slots
            if index == last:
                entered, attended, slots = x[:, tree.ends], attended[:, tree.ends], slots[tree.ends]
            x = block.finish(entered, attended)
            if index in after:
                x = after[index](entered, x, slots)
        return x

    def _frozen(self, number: int, first: int) -> Tensor:
        """Give the tokens of prompts without learned vectors on their way into a block; kept while frozen."""

        def climb() -> Tensor:
            return self._climb(number, self._embed(self.trees[number], None), range(first), {})

        held = self._held([p for block in self.tower.blocks[:first] for p in block.module.parameters()])
        if any(part.requires_grad for part, _ in held):
            return climb()
        known = self._below.get((number, first))
        if known is None or not _same(held, known[0]):
            with torch.no_grad():
                known = self._below[number, first] = held, climb()
        return known[1]

    def _embed(self, tree: Tree, learned: Tensor | None) -> Tensor:
        """Give the tokens on their way into the first block: embedding or learned vector, plus place."""
        words = cast(nn.Module, self.tower.embedding)(tree.tokens)
        places = cast(Tensor, self.tower.positions)[tree.positions]
        rows = tree.learned
        if not len(rows):
            return (words + places).expand(1 if learned is None else len(learned), -1, -1)
        if learned is None:
            raise unexpected("learned", None, "the vectors that these prompts hold")
        x = words.expand(len(learned), -1, -1).index_copy(1, rows, learned[:, tree.slots[rows]].to(words))
        return x + places

    def _project_first(self, block: Block, x: Tensor, number: int) -> Tensor:
        """Project the learned rows only; the rest of the first block's q, k, v never changes."""
        rows = self.trees[number].learned
        held = self._held([*block.qkv, *block.norm1.parameters()])
        if not x.requires_grad or any(part.requires_grad for part, _ in held):
            return project(block, x)
        known = self._first.get(number)
        if known is None or not _same(held, known[0]):
            with torch.no_grad():
                known = self._first[number] = held, project(block, x[:1])
        fresh = project(block, x[:, rows])
        return known[1].to(fresh).expand(len(x), -1, -1).index_copy(1, rows, fresh)

    def _held(self, weights: Sequence[Tensor | None]) -> list[tuple[Tensor, int]]:
        """Give what frozen tokens are made of, with these weights, and how often each was changed."""
        words = cast(nn.Module, self.tower.embedding).parameters()
        parts = [self.tower.positions, *words, *weights]
        return [(part, part._version) for part in parts if isinstance(part, Tensor)]


def _same(now: list[tuple[Tensor, int]], then: list[tuple[Tensor, int]]) -> bool:
    """Whether these are the same tensors, unchanged."""
    pairs = zip(now, then, strict=False)
    return len(now) == len(then) and all(a[0] is b[0] and a[1] == b[1] for a, b in pairs)


def limits(device: torch.device, width: int, blocks: int) -> tuple[int, int]:
    """Give the most tokens of a part, and the most that are kept for the backward."""
    part, memory = LIMITS.get(device.type, OTHER_LIMITS)
    return part, memory // (4 * FLOATS * width * blocks)


def run_parts(
    run: Callable[..., Tensor], parts: list[tuple[Any, ...]], sizes: list[int], kept: int
) -> list[Tensor]:
    """Run parts one by one; in the backward, those that are not among the last `kept` tokens run again.

    The last part is the first in the backward, so it is always kept.
    """
    found: list[Tensor] = []
    for number, part in enumerate(parts):
        fits = number == len(parts) - 1 or sum(sizes[number:]) <= kept or not torch.is_grad_enabled()
        found.append(run(*part) if fits else checkpoint(run, *part, use_reentrant=False))
    return found


def project(block: Block, x: Tensor) -> Tensor:
    """The joint query, key and value of tokens `[B, N, D]`: `[B, N, 3 D]`."""
    return F.linear(block.norm1(x), *block.qkv)


def attend(qkv: Tensor, heads: int, tree: Tree) -> Tensor:
    """Let every node attend to its ancestors and itself: `[B, N, 3 D]` to `[B, N, D]`.

    The trunk is causal in itself; a bin attends to the trunk and, where `tree.sees`, to itself.
    """
    (bins, length), stem, batch = tree.bins, tree.trunk, len(qkv)
    q, k, v = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, H, N, d]

    def own(part: Tensor) -> Tensor:
        """`[B, G, H, L, d]`, the bins."""
        return part[:, :, stem:].unflatten(2, (bins, length)).transpose(1, 2)

    def seen(part: Tensor) -> Tensor:
        """`[B G, H, S + L, d]`, trunk and bin."""
        shared = part[:, None, :, :stem].expand(-1, bins, -1, -1, -1)
        return torch.cat([shared, own(part)], dim=3).flatten(0, 1)

    tails = F.scaled_dot_product_attention(
        own(q).flatten(0, 1), seen(k), seen(v), attn_mask=tree.sees.repeat(batch, 1, 1, 1)
    )
    tails = tails.unflatten(0, (batch, bins)).permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)
    if not stem:
        return tails
    trunk = F.scaled_dot_product_attention(
        q[:, :, :stem], k[:, :, :stem], v[:, :, :stem], is_causal=True
    )  # [B, H, S, d]
    return torch.cat([trunk.transpose(1, 2).flatten(2), tails], dim=1)

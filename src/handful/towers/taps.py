"""Taps: the only file that registers hooks or parametrizations, and the plain pass through them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from handful.backbones.base import Backbone
from handful.backbones.tower import Tower
from handful.errors import SeamError, unexpected
from handful.towers.prefix import After, limits, run_parts

Tokens = Callable[[Tensor], Tensor]
"""A function of tokens `[N, L, D]`."""


class _Arrived(Exception):
    """Tokens have come to where a pass ends."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens


class Taps:
    """Functions on their way into a tower. Use it as a context, and leave it after `backward`.

    Other threads that want to run the tower wait until it is left.

    Functions see tokens as `[N, L, D]` and give as many; prompts overwrite placeholders, none insert.

    Parameters
    ----------
    tower
        A tower; without blocks (a ResNet) only `on_embed` is possible, if it embeds tokens.
    """

    def __init__(self, tower: Tower) -> None:
        self.tower = tower
        self._handles: list[Any] = []
        self._parametrized: list[tuple[nn.Module, str]] = []

    def __enter__(self) -> Self:
        self.tower.busy.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.detach()
        finally:
            self.tower.busy.release()

    def on_embed(self, fn: Tokens) -> None:
        """Put `fn` after the token (or patch) embedding, before positions are added."""
        if self.tower.embedding is None:
            raise SeamError(
                f"The {self.tower.side} tower has no token embedding to tap ({self.tower.absent}). "
                "Use a backbone of CLIP's kind."
            )

        def hook(module: nn.Module, args: Any, out: Tensor) -> Tensor:
            if out.ndim == 3:
                return fn(out)
            if out.shape[1] != self.tower.width:  # timm's grid [N, H, W, D]
                return fn(out.flatten(1, 2)).unflatten(1, out.shape[1:3])
            tokens = fn(out.flatten(2).transpose(1, 2))  # a convolution's grid [N, D, H, W]
            return tokens.transpose(1, 2).unflatten(2, out.shape[2:])

        self._handles.append(self.tower.embedding.register_forward_hook(hook))

    def at_entry(self, fn: Tokens) -> None:
        """Put `fn` before the first block, after positions and class token."""
        self.tower.require_blocks("A tap")
        self._handles.append(_before(cast(nn.Module, self.tower.entry), fn))

    def before(self, block: int, fn: Tokens) -> None:
        """Put `fn` before a block."""
        self._handles.append(_before(self._block(block), fn))

    def after(self, block: int, fn: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Put `fn(input, output)` after a block."""
        self._handles.append(self._block(block).register_forward_hook(lambda _, args, out: fn(args[0], out)))

    def put(self, after: After, slots: Tensor) -> None:
        """Put what a fast pass does after blocks into the tower; `slots` are those of its tokens."""
        for block, fn in after.items():
            self.after(block, partial(_with_slots, fn, slots))

    def reweight(self, block: int, path: str, module: nn.Module) -> None:
        """Give a block `module(weight)` in place of its weight at `path`, as in `"mlp.c_fc.weight"`."""
        owner, _, name = path.rpartition(".")
        modules = dict(self._block(block).named_modules())
        target = modules.get(owner)
        if target is None or not isinstance(getattr(target, name, None), Tensor):
            raise SeamError(f"Block {block} of the {self.tower.side} tower has no weight {path!r}.")
        parametrize.register_parametrization(target, name, module)
        self._parametrized.append((target, name))

    def tokens_before(self, block: int, run: Callable[[], Any]) -> Tensor:
        """Call `run`, which runs the tower, up to a block and no further: the tokens that enter it."""

        def stop(tokens: Tensor) -> Tensor:
            raise _Arrived(tokens)

        self.before(block, stop)
        try:
            run()
        except _Arrived as arrived:
            return arrived.tokens
        raise SeamError(f"The {self.tower.side} tower never came to block {block}.")

    def detach(self) -> None:
        """Leave the tower as it was."""
        for handle in self._handles:
            handle.remove()
        for target, name in self._parametrized:
            if parametrize.is_parametrized(target, name):
                parametrize.remove_parametrizations(target, name, leave_parametrized=False)
        self._handles, self._parametrized = [], []

    def _block(self, index: int) -> nn.Module:
        blocks = self.tower.require_blocks("A tap")
        if not 0 <= index < len(blocks):
            raise SeamError(f"Got block {index}, the {self.tower.side} tower has 0 to {len(blocks) - 1}.")
        return blocks[index].module


def _before(module: nn.Module, fn: Tokens) -> Any:
    return module.register_forward_pre_hook(lambda _, args: (fn(args[0]), *args[1:]))


def _with_slots(
    fn: Callable[[Tensor, Tensor, Tensor], Tensor], slots: Tensor, entered: Tensor, left: Tensor
) -> Tensor:
    return fn(entered, left, slots)


class PlainPass:
    """Text features of P prompts through the whole tower, all L positions: any tower, and slow.

    For towers that are not causal or that read their feature elsewhere than at the end of the text.
    Called as `PrefixPass` is, and gives the same numbers where both are valid.
    """

    def __init__(self, backbone: Backbone, tokens: Tensor, slots: Tensor) -> None:
        self.backbone = backbone
        self.tokens, self.slots = tokens.to(backbone.device), slots.to(backbone.device)
        width, blocks = max(self.tower.width, 1), max(len(self.tower.blocks), 12)
        self.part, self.kept = limits(backbone.device, width, blocks)

    @property
    def tower(self) -> Tower:
        """The text tower; never kept, so that a pass pickles as its backbone's name."""
        return self.backbone.text

    def __call__(self, learned: Tensor | None = None, after: After | None = None) -> Tensor:
        """Give features `[P, E]` for learned vectors `[W, D]`, `[B, P, E]` for `[B, W, D]`."""
        images = [learned] if learned is None or learned.ndim == 2 else list(learned)
        rows = list(
            torch.arange(len(self.tokens), device=self.tokens.device).split(
                max(self.part // self.slots.shape[1], 1)
            )
        )
        parts = [(part, vectors, after or {}) for vectors in images for part in rows]
        sizes = [part.numel() * self.slots.shape[1] for part, _, _ in parts]
        features = torch.cat(run_parts(self._run, parts, sizes, self.kept)).float()
        return features if learned is None or learned.ndim == 2 else features.unflatten(0, (len(images), -1))

    def _run(self, rows: Tensor, learned: Tensor | None, after: After) -> Tensor:
        slots = self.slots[rows]

        def overwrite(embedded: Tensor) -> Tensor:
            where = (slots >= 0).nonzero(as_tuple=True)
            if learned is None:
                raise unexpected("learned", None, "the vectors that these prompts hold")
            return embedded.index_put(where, learned[slots[where]].to(embedded))

        with Taps(self.tower) as taps, self.backbone.autocast():
            if (slots >= 0).any():
                taps.on_embed(overwrite)
            taps.put(after, slots)
            return cast(Any, self.backbone.model).encode_text(self.tokens[rows])

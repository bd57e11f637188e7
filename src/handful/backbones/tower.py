"""The seams of a transformer tower, found in open_clip's and timm's modules."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import RLock
from typing import Any, Literal, cast

from torch import Tensor, nn

from handful.errors import SeamError

IDLE = (nn.Identity, nn.Dropout)
"""Modules that do nothing to features."""


@dataclass(frozen=True)
class Block:
    """The seams of one transformer block, `x + ls1(attn(norm1 x))`, then `x + ls2(mlp(norm2 x))`."""

    module: nn.Module
    norm1: nn.Module
    norm2: nn.Module
    mlp: nn.Module
    scale1: nn.Module
    scale2: nn.Module
    out: nn.Linear
    """The output projection of the attention."""
    heads: int
    project: Callable[[], tuple[Tensor, Tensor | None]]
    """Gives the joint q, k, v weight `[3 D, D]` and bias `[3 D]`, live."""

    @property
    def qkv(self) -> tuple[Tensor, Tensor | None]:
        """The joint projection's weight `[3 D, D]` and bias `[3 D]` or None."""
        return self.project()

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Give the block's output for its input and what the heads of its attention say, `[N, L, D]`."""
        x = x + self.scale1(self.out(attended))
        return x + self.scale2(self.mlp(self.norm2(x)))


@dataclass(frozen=True)
class Tower:
    """One encoder's seams. A tower without blocks (a ResNet, a foreign text model) has none."""

    side: Literal["image", "text"]
    width: int
    blocks: tuple[Block, ...] = ()
    causal: bool = False
    """A position never sees what comes after it, and the feature is read at the end of the text."""
    end_token: int | None = None
    """The token that a causal tower's feature is read at; None: the largest token of the text."""
    context: int = 0
    """Positions that the tower reads."""
    embedding: nn.Module | None = None
    """Token embedding (text) or patch embedding (image)."""
    positions: Tensor | None = None
    """Positional embedding `[L, D]`."""
    class_token: Tensor | None = None
    entry: nn.Module | None = None
    """The module whose input is the tokens `[N, L, D]` on their way into the first block."""
    before: nn.Module | None = None
    """The norm before the first block, if any."""
    final_norm: nn.Module | None = None
    projection: Tensor | nn.Module | None = None
    """From tower width to joint width: `[D, E]`, a Linear, or None."""
    leave: Callable[[Tensor], Tensor] | None = None
    """From the last block's tokens `[N, L, D]` to the feature `[N, E]`: norm, pooling, projection."""
    reads_first: bool = False
    """Whether the feature is read at the first token alone, so that `leave` needs no other."""
    absent: str = ""
    """Why there are no seams, when there are none."""
    busy: Any = field(default_factory=RLock, compare=False, repr=False)
    """Held by the thread that runs the whole tower or has tapped it: a hook is seen by all who run."""

    def ends(self, tokens: Tensor) -> Tensor:
        """Give the position `[N]` at which a causal tower reads the feature of tokens `[N, L]`."""
        marks = tokens if self.end_token is None else (tokens == self.end_token).int()
        return marks.argmax(dim=-1)

    def require_blocks(self, wanted_by: str) -> tuple[Block, ...]:
        """Give the blocks, or say why `wanted_by` can't work here."""
        if not self.blocks:
            raise SeamError(
                f"{wanted_by} works inside the {self.side} tower, and this one has no transformer "
                f"blocks to enter ({self.absent}). Use a ViT backbone, or a method that works on "
                "features: TipAdapter, LinearProbe."
            )
        return self.blocks


def at_depth(number: int, blocks: int, others: int) -> int:
    """Give the block of a tower with `others` that stands at a block's share of the depth, counted from 1."""
    return round(number * others / blocks)


def text_tower(model: nn.Module) -> Tower:
    """Find the seams of the text tower of `CLIP` or `CustomTextCLIP`."""
    tower = cast(Any, getattr(model, "text", model))
    if not hasattr(tower, "transformer") or not hasattr(tower, "token_embedding"):
        width = int(getattr(getattr(tower, "config", None), "hidden_size", 0))
        return Tower("text", width, absent=f"it is a {type(tower).__name__}")
    blocks, absent = _blocks(tower.transformer)
    pool = getattr(tower, "text_pool_type", getattr(tower, "pool_type", "argmax"))
    has_class = getattr(tower, "cls_emb", None) is not None
    end_token = getattr(tower, "text_eos_id", getattr(tower, "eos_id", None))
    pads = getattr(tower, "use_pad_mask", False)  # may hide a word whose number is the padding's
    return Tower(
        "text",
        width=int(tower.token_embedding.weight.shape[1]),
        blocks=blocks,
        causal=tower.attn_mask is not None and pool in ("argmax", "eos") and not has_class and not pads,
        end_token=end_token if pool == "eos" else None,
        context=int(tower.context_length),
        embedding=tower.token_embedding,
        positions=tower.positional_embedding,
        entry=tower.transformer,
        final_norm=tower.ln_final,
        projection=tower.text_projection,
        absent=absent,
    )


def image_tower(visual: nn.Module) -> Tower:
    """Find the seams of a ViT of open_clip or timm; a ResNet has none."""
    v = cast(Any, visual)
    if hasattr(v, "transformer") and hasattr(v, "conv1"):
        blocks, absent = _blocks(v.transformer)
        return Tower(
            "image",
            width=int(v.positional_embedding.shape[1]),
            blocks=blocks,
            context=int(v.positional_embedding.shape[0]),
            embedding=v.conv1,
            positions=v.positional_embedding,
            class_token=v.class_embedding,
            entry=v.transformer,
            before=v.ln_pre,
            final_norm=v.ln_post,
            projection=v.proj,
            leave=lambda x: _leave(v, x),
            reads_first=v.attn_pool is None and v.pool_type == "tok",
            absent=absent,
        )
    trunk = getattr(v, "trunk", None)
    if trunk is not None and isinstance(getattr(trunk, "blocks", None), nn.Sequential):
        found = [_timm_block(block) for block in trunk.blocks]
        if all(found) and isinstance(getattr(trunk, "pos_embed", None), Tensor):
            return Tower(
                "image",
                width=int(trunk.embed_dim),
                blocks=tuple(block for block in found if block),
                context=int(trunk.pos_embed.shape[1]),
                embedding=trunk.patch_embed,
                positions=trunk.pos_embed[0],
                class_token=None if trunk.cls_token is None else trunk.cls_token[0, 0],
                entry=trunk.blocks,
                before=trunk.norm_pre,
                final_norm=trunk.norm,
                projection=getattr(v.head, "proj", None),
                leave=lambda x: v.head(trunk.forward_head(trunk.norm(x))),
                reads_first=trunk.attn_pool is None and trunk.global_pool == "token",
            )
    width = int(getattr(v, "output_dim", 0) or getattr(trunk, "num_features", 0))
    return Tower("image", width, absent=f"it is a {type(trunk or visual).__name__}")


def _leave(visual: Any, x: Tensor) -> Tensor:
    """Go from the last tokens of open_clip's ViT to its features."""
    pooled: Tensor = visual._pool(x)[0]
    return pooled if visual.proj is None else pooled @ visual.proj


def _blocks(transformer: Any) -> tuple[tuple[Block, ...], str]:
    """Name the parts of every block of open_clip's transformer, or give none and the reason."""
    found = [_block(block) for block in transformer.resblocks]
    if all(found) and transformer.batch_first:
        return tuple(block for block in found if block), ""
    return (), "its blocks are of open_clip's custom kind, or read the sequence first"


def _block(module: nn.Module) -> Block | None:
    """Name the parts of open_clip's `ResidualAttentionBlock`."""
    b = cast(Any, module)
    if not isinstance(getattr(b, "attn", None), nn.MultiheadAttention):
        return None
    attn = b.attn
    return Block(
        module, b.ln_1, b.ln_2, b.mlp, b.ls_1, b.ls_2, attn.out_proj, int(attn.num_heads),
        lambda: (attn.in_proj_weight, attn.in_proj_bias),
    )  # fmt: skip


def _timm_block(module: nn.Module) -> Block | None:
    """Name the parts of timm's pre-norm `Block`."""
    b = cast(Any, module)
    attn = getattr(b, "attn", None)
    if attn is None or not all(hasattr(attn, part) for part in ("qkv", "proj", "num_heads")):
        return None
    if any(
        not isinstance(getattr(attn, norm, None), nn.Identity | None) for norm in ("q_norm", "k_norm", "norm")
    ):
        return None
    return Block(
        module, b.norm1, b.norm2, b.mlp, b.ls1, b.ls2, attn.proj, int(attn.num_heads),
        lambda: (attn.qkv.weight, attn.qkv.bias),
    )  # fmt: skip


def structure(model: Any) -> dict[str, str]:
    """What the weights don't tell and features depend on: activations, norms, heads, masks and pooling."""
    visual, text = model.visual, getattr(model, "text", model)
    image = getattr(getattr(visual, "trunk", None), "global_pool", getattr(visual, "pool_type", ""))
    inner = [
        [
            type(module).__name__,
            *(str(getattr(module, name, "")) for name in ("eps", "approximate", "num_heads")),
        ]
        for module in model.modules()
        if hasattr(module, "num_heads") or not (list(module.children()) or isinstance(module, IDLE))
    ]
    causal = getattr(text, "attn_mask", None) is not None
    return {
        "structure": hashlib.sha256(json.dumps([inner, causal]).encode()).hexdigest()[:16],
        "image_pool": str(image),
        "text_pool": str(getattr(text, "text_pool_type", getattr(text, "pool_type", ""))),
    }

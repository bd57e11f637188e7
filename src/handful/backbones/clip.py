"""The two towers of CLIP (Radford et al. 2021, section 2.4) in plain PyTorch, as `mini` needs them.

Modules, parameters and the order of operations are those of open_clip's `CLIP`, so that its state dict
loads, the seams are found in the same places, and features agree to the last bit. It stands here because
open_clip takes seconds to import.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MLP_RATIO = 4


class LayerNorm(nn.LayerNorm):
    """A layer norm that gives what it got under autocast too, which computes it in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis of `x`."""
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).to(x.dtype)


class LayerScale(nn.Module):
    """A learned factor for each channel of a residual branch (Touvron et al. 2021)."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor) -> Tensor:
        """Scale the last axis of `x`."""
        return x * self.gamma


class ResidualAttentionBlock(nn.Module):
    """A pre-norm transformer block; `scale` is the start of its layer scales, None for none."""

    def __init__(self, width: int, heads: int, scale: float | None) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ls_1 = nn.Identity() if scale is None else LayerScale(width, scale)
        self.ln_2 = LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, MLP_RATIO * width))
        self.mlp.add_module("gelu", nn.GELU())
        self.mlp.add_module("c_proj", nn.Linear(MLP_RATIO * width, width))
        self.ls_2 = nn.Identity() if scale is None else LayerScale(width, scale)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Map tokens `[N, L, D]` to `[N, L, D]`; the mask `[L, L]` is added to the attention's logits."""
        normed = self.ln_1(x)
        mask = None if attn_mask is None else attn_mask.to(normed.dtype)
        x = x + self.ls_1(self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0])
        return x + self.ls_2(self.mlp(self.ln_2(x)))


class Transformer(nn.Module):
    """A stack of blocks."""

    batch_first = True

    def __init__(self, width: int, layers: int, heads: int, scale: float | None = None) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(ResidualAttentionBlock(width, heads, scale) for _ in range(layers))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Map tokens `[N, L, D]` to `[N, L, D]`."""
        for block in self.resblocks:
            x = block(x, attn_mask=attn_mask)
        return x


class ImageTower(nn.Module):
    """A vision transformer that averages its patches; the patch embedding, `conv1`, is given."""

    attn_pool = None
    pool_type = "avg"

    def __init__(self, conv1: nn.Module, embed_dim: int, config: dict[str, Any]) -> None:
        super().__init__()
        width, self.image_size = config["width"], config["image_size"]
        patches = (self.image_size // config["patch_size"]) ** 2
        self.conv1 = conv1
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(patches + 1, width))
        self.ln_pre = LayerNorm(width)
        heads = width // config["head_width"]
        self.transformer = Transformer(width, config["layers"], heads, config["ls_init_value"])
        self.ln_post = LayerNorm(width)
        self.proj = nn.Parameter(torch.zeros(width, embed_dim))

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels `[N, 3, H, W]` to features `[N, E]`, or `[N, D]` where the projection is taken away."""
        x = self.conv1(pixels).flatten(2).transpose(1, 2)  # [N, L - 1, D]
        x = torch.cat([self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1), x], dim=1)
        x = self.transformer(self.ln_pre(x + self.positional_embedding.to(x.dtype)))
        pooled = self._pool(x)[0]
        return pooled if self.proj is None else pooled @ self.proj

    def _pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Give the mean patch `[N, D]` of the last tokens `[N, L, D]`, and the patches, normalised."""
        patches = self.ln_post(x)[:, 1:]
        return patches.mean(dim=1), patches


class Clip(nn.Module):
    """CLIP: an image tower, and a causal text tower whose feature is read at the end of the text.

    Parameters
    ----------
    conv1
        The patch embedding: pixels `[N, 3, H, W]` to a grid `[N, D, h, w]`.
    embed_dim
        E, the width of the space that images and texts share.
    vision_cfg, text_cfg
        As in open_clip's config form: what `mini` sets.
    """

    text_pool_type = "argmax"

    def __init__(
        self, conv1: nn.Module, embed_dim: int, vision_cfg: dict[str, Any], text_cfg: dict[str, Any]
    ) -> None:
        super().__init__()
        width, self.context_length = text_cfg["width"], text_cfg["context_length"]
        self.visual = ImageTower(conv1, embed_dim, vision_cfg)
        self.transformer = Transformer(width, text_cfg["layers"], text_cfg["heads"])
        # Zeros, not nn.Embedding's normal draws: on the meta device these import PyTorch's compiler.
        table = torch.zeros(text_cfg["vocab_size"], width)
        self.token_embedding = nn.Embedding.from_pretrained(table, freeze=False)
        self.positional_embedding = nn.Parameter(torch.zeros(self.context_length, width))
        self.ln_final = LayerNorm(width)
        self.text_projection = nn.Parameter(torch.zeros(width, embed_dim))
        self.logit_scale = nn.Parameter(torch.zeros(()))
        # On the CPU even where the weights are built on no device: no state dict brings the mask.
        causal = torch.full((self.context_length,) * 2, -torch.inf, device="cpu").triu(1)
        self.register_buffer("attn_mask", causal, persistent=False)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Map pixels `[N, 3, H, W]` to features `[N, E]`."""
        return self.visual(pixels)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Map tokens `[N, L]` to features `[N, E]`, read at each text's largest token."""
        x = self.token_embedding(tokens) + self.positional_embedding
        x = self.ln_final(self.transformer(x, attn_mask=self.attn_mask))
        return x[torch.arange(x.shape[0], device=x.device), tokens.argmax(dim=-1)] @ self.text_projection

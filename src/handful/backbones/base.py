"""What a backbone is to the rest of the house: two encoders, two towers, one fingerprint."""

from __future__ import annotations

import copy
import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import PurePath
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from handful.backbones.preprocessing import DEFAULTS, Preprocessing
from handful.backbones.tower import image_tower, structure, text_tower
from handful.errors import ParameterError, unexpected

COSINE_FLOOR = 0.999


class Backbone:
    """A frozen image-text model: a module in open_clip's form, its tokenizer, open_clip's `preprocess_cfg`.

    Made by `handful.load_backbone`. Never copied: `sklearn.clone` and `copy.deepcopy` give the
    backbone itself, so any number of estimators, and of threads, share one.

    Attributes
    ----------
    name
        What `load_backbone` was given, so that a checkpoint can name it.
    scale, bias
        `exp(logit_scale)` and the logit bias (None for CLIP, a number for SigLIP).
    text, image
        The seams of the two towers.
    preprocessing
        How an image becomes pixels.
    facts
        What features depend on beside the weights, as texts: settings, tokenizer, structure.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        tokenizer: Callable[[list[str]], Tensor],
        preprocess: Mapping[str, Any],
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
    ) -> None:
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.text, self.image = text_tower(model), image_tower(_attribute(model, "visual"))
        self.tokenizer = tokenizer
        settings = {key: preprocess.get(key, default) for key, default in DEFAULTS.items()}
        self.preprocessing = Preprocessing.read(settings)
        self.facts = {key: str(value) for key, value in settings.items()} | structure(model)
        self.facts["tokenizer"] = type(tokenizer).__name__
        self.scale = float(_attribute(model, "logit_scale").exp())
        logit_bias = getattr(model, "logit_bias", None)
        self.bias = None if logit_bias is None else float(logit_bias)
        self.device = choose_device(device)
        self.model.to(self.device)
        self.dtype = self._choose_dtype(dtype)

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"Backbone({self.name!r}, device='{self.device}', dtype='{dtype}')"

    def __sklearn_clone__(self) -> Backbone:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Backbone:
        return self

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over weights and preprocessing: part of every cache key and checkpoint."""
        hasher = hashlib.sha256(repr(sorted(self.facts.items())).encode())
        for key, value in sorted(self.model.state_dict().items()):
            hasher.update(f"{key} {tuple(value.shape)} {value.dtype} ".encode())
            hasher.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return hasher.hexdigest()

    @property
    def title(self) -> str:
        """The name, short enough for a table: of files it is the config's."""
        return PurePath(json.loads(self.name)["config"]).stem if self.name.startswith("{") else self.name

    @property
    def image_size(self) -> int:
        """The side of the square that the image tower reads, in pixels."""
        size = _attribute(self.model, "visual").image_size
        return int(size if isinstance(size, int) else size[0])

    @cached_property
    def joint_width(self) -> int:
        """E, the width of the space that images and texts share."""
        for projection in (self.text.projection, self.image.projection):
            if isinstance(projection, Tensor):
                return projection.shape[1]
            if isinstance(projection, nn.Linear):
                return projection.out_features
        return self.encode_text(self.tokenize(["X"])).shape[1]

    def preprocess(self, image: Image.Image) -> Tensor:
        """Turn an RGB image into pixels `[3, H, W]`, as for testing."""
        return self.preprocessing(image)

    def view(self, image: Image.Image, seed: int, scale: tuple[float, float]) -> Tensor:
        """Augment an RGB image: a random crop of `scale` of its area, flipped half of the time.

        The same seed gives the same view; the global random state is left as it was.
        """
        return self.preprocessing.view(image, seed, scale)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Turn texts into tokens `[N, L]`.

        Raises
        ------
        ParameterError
            A text is longer than the tower reads; it would be cut without a word.
        """
        if self.text.context:
            for text in texts:
                length = self.count_tokens(text, specials=True)
                if length > self.text.context:
                    raise ParameterError(
                        f"Got a text of {length} tokens, {text[:60]!r}..., the text tower reads "
                        f"{self.text.context}. Shorten the class name or the template."
                    )
        return self.tokenizer(list(texts))

    def count_tokens(self, text: str, *, specials: bool = False) -> int:
        """Count a text's tokens, with or without the ones that mark its start and end."""
        encode = getattr(self.tokenizer, "encode", None)
        if encode is not None:  # open_clip's own
            return len(encode(text)) + 2 * specials
        clean, inner = _attribute(self.tokenizer, "clean_fn"), _attribute(self.tokenizer, "tokenizer")
        return len(inner(clean(text), add_special_tokens=specials).input_ids)

    def token_text(self, token: int) -> str:
        """Write a token out; `</w>` marks the end of a word in CLIP's vocabulary."""
        inner: Any = getattr(self.tokenizer, "tokenizer", self.tokenizer)
        return str(inner.decode([token])).strip()

    def autocast(self) -> AbstractContextManager[Any]:
        """Compute in the backbone's dtype inside this block."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> Tensor:
        """Encode pixels `[N, 3, H, W]` to raw (un-normalised) features `[N, E]` in float32."""
        return self.encode_image_hidden(pixels)[0]

    @torch.no_grad()
    def encode_image_hidden(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Encode pixels to features `[N, E]` and to the vector before the last projection `[N, H]`.

        The second is None where the tower has no final linear projection.
        """
        with self.image.busy, self.autocast():
            hidden, project = split_projection(_attribute(self.model, "visual"), pixels.to(self.device))
            features = project(hidden)
        return features.float(), hidden.float() if hidden is not features else None

    @torch.no_grad()
    def encode_text(self, tokens: Tensor) -> Tensor:
        """Encode tokens `[N, L]` to raw (un-normalised) features `[N, E]` in float32."""
        with self.text.busy, self.autocast():
            return _attribute(self.model, "encode_text")(tokens.to(self.device)).float()

    def _choose_dtype(self, dtype: str | torch.dtype) -> torch.dtype:
        """Take bf16 on a GPU that has it, if features keep their direction; float32 elsewhere."""
        allowed = {"float32": torch.float32, "bfloat16": torch.bfloat16}
        if dtype != "auto":
            wanted = allowed.get(str(dtype).removeprefix("torch."))
            if wanted is None:
                raise unexpected("dtype", dtype, "'auto', 'float32' or 'bfloat16'")
            if wanted == torch.bfloat16 and not has_bf16(self.device):
                warnings.warn(
                    f"This {self.device.type} has no bfloat16 instructions and would emulate them, tens of "
                    "times slower: float32 is used.",
                    stacklevel=2,
                )
                return torch.float32
            return wanted
        self.dtype = torch.float32
        fast = self.device.type == "cuda" and has_bf16(self.device)
        return torch.bfloat16 if fast and self.cosine_to_float32() >= COSINE_FLOOR else torch.float32

    def cosine_to_float32(self, dtype: torch.dtype = torch.bfloat16) -> float:
        """Smallest cosine between features in `dtype` and in float32, on four probe images."""
        generator = torch.Generator().manual_seed(0)
        coarse = torch.randn(4, 3, 8, 8, generator=generator)
        probe = nn.functional.interpolate(coarse, (self.image_size,) * 2, mode="bicubic")
        kept, exact = self.dtype, None
        try:
            self.dtype = torch.float32
            exact = self.encode_image(probe)
            self.dtype = dtype
            return float(nn.functional.cosine_similarity(exact, self.encode_image(probe)).min())
        finally:
            self.dtype = kept


def _attribute(module: object, name: str) -> Any:
    return getattr(module, name)


def has_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 by instructions of its own."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return True


def choose_device(device: str | torch.device) -> torch.device:
    """Choose a GPU where there is one, for `"auto"`."""
    if device != "auto":
        try:
            torch.empty(0, device=device)
            return torch.device(device)
        except (RuntimeError, AssertionError) as error:
            raise unexpected(
                "device", device, "'auto', 'cpu' or another device that this machine has"
            ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a CUDA build on a machine without a driver warns here
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def split_projection(visual: nn.Module, pixels: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Run an image tower up to its final projection, and give that projection as a function.

    The tower runs once, without the projection; where it has no final linear projection, the features
    come first and the function gives them back.
    """
    proj = getattr(visual, "proj", None)
    if isinstance(proj, Tensor):  # open_clip's ViT: [H, E]
        return _twin(visual, proj=None)(pixels), lambda x: x @ proj
    pool = getattr(visual, "attnpool", None)
    if pool is not None:  # ModifiedResNet: c_proj is Linear(H, E), and its attention wants one
        weight, bias = pool.c_proj.weight, pool.c_proj.bias
        eye = torch.eye(weight.shape[1]).to(weight)
        plain = _twin(pool.c_proj, weight=eye, bias=torch.zeros_like(weight[0]))
        hidden = _twin(visual, attnpool=_twin(pool, c_proj=plain))(pixels)
        return hidden, lambda x: nn.functional.linear(x, weight, bias)
    trunk, head = getattr(visual, "trunk", None), getattr(visual, "head", None)
    if trunk is not None and head is not None and set(head._modules) == {"drop", "proj"}:
        return trunk(pixels), head  # a timm tower that pools before its projection
    return visual(pixels), lambda x: x


def final_projection(visual: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Give the final linear projection of an image tower, `f = h P + b`: P `[H, E]`, b `[E]` (0 in a ViT).

    None where there is none, or more than a linear one.
    """
    proj, pool, head = (getattr(visual, name, None) for name in ("proj", "attnpool", "head"))
    if isinstance(proj, Tensor):
        return proj.detach().float(), torch.zeros(proj.shape[1])
    layer = getattr(pool, "c_proj", None) if pool is not None else getattr(head, "proj", None)
    if not isinstance(layer, nn.Linear):
        return None
    weight = layer.weight.detach().float().T
    return weight, weight.new_zeros(weight.shape[1]) if layer.bias is None else layer.bias.detach().float()


def _twin(module: nn.Module, **other: Tensor | nn.Module | None) -> nn.Module:
    """Give a module that shares all but some parameters or children with another, which stays as it is."""
    twin = copy.copy(module)
    twin._parameters = {name: other.get(name, own) for name, own in module._parameters.items()}  # type: ignore
    twin._modules = {name: other.get(name, own) for name, own in module._modules.items()}  # type: ignore
    return twin

"""How an image becomes pixels: open_clip's test and training transforms, with Pillow and PyTorch alone.

Bit for bit what open_clip gives by torchvision, which takes seconds to import.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from handful.errors import BackboneError

DEFAULTS: dict[str, Any] = {
    "size": 224,
    "mode": "RGB",
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}
"""Settings that a config leaves out: those of open_clip's `PreprocessCfg`."""
ALLOWED = {
    "mode": ("RGB",),
    "interpolation": ("bicubic", "bilinear", "random"),
    "resize_mode": ("shortest", "squash", "longest"),
}
ASPECTS = (3 / 4, 4 / 3)
"""Narrowest and widest crop of a view, width by height."""


@dataclass(frozen=True)
class Preprocessing:
    """How an upright RGB image becomes the pixels that an image tower reads.

    Attributes
    ----------
    size
        Height and width of the pixels.
    resize
        `"shortest"`: in proportion until no side is too short, then the centre is cut out. `"squash"`:
        to the size, whatever the proportions. `"longest"`: in proportion until no side is too long,
        then filled up around the centre.
    interpolation
        Pillow's, for testing; a view is always bicubic.
    fill
        Grey level that `"longest"` fills up with.
    mean, std
        Of each channel, on the scale 0..1.
    """

    size: tuple[int, int]
    resize: Literal["shortest", "squash", "longest"]
    interpolation: Literal["bicubic", "bilinear"]
    fill: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> Self:
        """Read settings in the form of open_clip's `preprocess_cfg`, all of `DEFAULTS` among them.

        Raises
        ------
        BackboneError
            A setting is none that open_clip knows.
        """
        given = {key: value or DEFAULTS[key] for key, value in settings.items()}
        for key, allowed in ALLOWED.items():
            if given[key] not in allowed:
                raise BackboneError(
                    f"Got preprocess_cfg with {key} {given[key]!r}, expected one of {list(allowed)}. Give "
                    "the config that belongs to the weights, in open_clip's form."
                )
        try:
            (height, width), mean, std = (
                _each(given[key], n) for key, n in (("size", 2), ("mean", 3), ("std", 3))
            )
            fill = int(given["fill_color"])
            if not all(std):
                raise ValueError("a std of 0")
        except (TypeError, ValueError) as error:
            raise BackboneError(
                f"Got preprocess_cfg {dict(settings)}, expected size as a number or [height, width], mean "
                f"and std as a number or three, fill_color as a grey level ({error})."
            ) from error
        # open_clip reads "random" as bicubic for testing, and knows no other for a size that is not square.
        wide = given["resize_mode"] == "shortest" and height != width
        bilinear = given["interpolation"] == "bilinear" and not wide
        return cls(
            (int(height), int(width)),
            given["resize_mode"],
            "bilinear" if bilinear else "bicubic",
            fill,
            tuple(map(float, mean)),
            tuple(map(float, std)),
        )

    def __call__(self, image: Image.Image) -> Tensor:
        """Turn an RGB image into pixels `[3, H, W]`, as for testing."""
        height, width = self.size
        method = Image.Resampling[self.interpolation.upper()]
        image = image.resize(self._resized(image.width, image.height), method).convert("RGB")
        if image.size != (width, height):
            canvas = Image.new("RGB", (width, height), (self.fill,) * 3)
            canvas.paste(image, (_offset(width, image.width), _offset(height, image.height)))
            image = canvas
        return self._normalized(image)

    def view(self, image: Image.Image, seed: int, scale: tuple[float, float]) -> Tensor:
        """Turn a random crop of an RGB image into pixels `[3, H, W]`, flipped half of the time.

        The crop has `scale` of the image's area and an aspect ratio in `ASPECTS` (Szegedy et al. 2015,
        section 6). The same seed gives the same view.
        """
        generator = torch.Generator().manual_seed(seed)
        left, top, width, height = _draw_crop(image.width, image.height, scale, generator)
        crop = image.crop((left, top, left + width, top + height))
        crop = crop.resize(self.size[::-1], Image.Resampling.BICUBIC).convert("RGB")
        pixels = self._normalized(crop)
        return pixels.flip(-1) if torch.rand((), generator=generator) < 0.5 else pixels

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Give width and height after resizing, before the centre is cut out or filled up around."""
        high, wide = self.size
        if self.resize == "squash":
            return wide, high
        if self.resize == "shortest" and high == wide:  # the longer side rounded down
            return wide * width // min(width, height), wide * height // min(width, height)
        choose = min if self.resize == "shortest" else max
        ratio = choose(height / high, width / wide)
        return max(1, round(width / ratio)), max(1, round(height / ratio))

    def _normalized(self, image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div_(255)
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in (self.mean, self.std))
        return pixels.sub_(mean).div_(std)


def _each(value: Any, count: int) -> tuple[Any, ...]:
    """Give a list as a tuple of `count`, a number as that many."""
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    values = values * count if len(values) == 1 else values
    if len(values) != count or not all(isinstance(number, int | float) for number in values):
        raise ValueError(f"{value!r} is not a number or {count} of them")
    return values


def _offset(outer: int, inner: int) -> int:
    """Give where an image begins on a canvas, in its middle; negative where it is larger."""
    return (outer - inner) // 2 if outer > inner else -round((inner - outer) / 2)


def _draw_crop(
    width: int, height: int, scale: tuple[float, float], generator: torch.Generator
) -> tuple[int, int, int, int]:
    """Draw left, top, width and height of a crop, in torchvision's order, so that seeds keep their views."""

    def draw(low: float, high: float) -> Tensor:
        return torch.empty(1).uniform_(low, high, generator=generator)

    narrow, broad = torch.tensor(ASPECTS).log().tolist()
    for _ in range(10):
        area, aspect = width * height * draw(*scale).item(), draw(narrow, broad).exp().item()
        wide, high = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < high <= height:
            top, left = (
                int(torch.randint(room + 1, (1,), generator=generator))
                for room in (height - high, width - wide)
            )
            return left, top, wide, high
    # No such crop found room: the largest in the middle.
    aspect = min(max(width / height, ASPECTS[0]), ASPECTS[1])
    wide, high = min(width, round(height * aspect)), min(height, round(width / aspect))
    return (width - wide) // 2, (height - high) // 2, wide, high

"""Frozen image-text models. Knows nothing of data sets."""

from __future__ import annotations

import copyreg
import json
from pathlib import Path
from typing import Any

from handful.backbones.base import Backbone
from handful.backbones.tower import Block, Tower
from handful.errors import BackboneError

__all__ = ["Backbone", "Block", "Tower", "load_backbone", "reload_backbone"]


def load_backbone(
    name: str | Path = "mini",
    weights: str | Path | None = None,
    *,
    device: Any = "auto",
    dtype: Any = "auto",
) -> Backbone:
    """Load a frozen image-text model.

    Parameters
    ----------
    name
        `"mini"`: embedded, no download, a demonstration model.
        `"ViT-B-16/openai"`: an open_clip model and weights tag.
        `"hf-hub:org/name"`: a model in open_clip's form on the Hugging Face hub.
        `"config.json"`: a file in open_clip's config form, with `weights`.
    weights
        A safetensors file or a saved state dict that belongs to the config file.
    device
        `"auto"` (a GPU where there is one), or a torch device.
    dtype
        `"auto"` (float32 on the CPU; bfloat16 on a GPU if features keep a cosine of 0.999 to
        float32), `"float32"` or `"bfloat16"`. Weights stay float32, products run in `dtype`.

    Raises
    ------
    WeightsUnavailable
        The weights are neither on this machine nor to be fetched.
    BackboneError
        Config and weights don't belong together, or OpenAI's weights would load without QuickGELU.
    ParameterError
        The name, device or dtype is unknown.
    """
    if str(name) == "mini" and weights is None:
        from handful.backbones import mini

        return mini.load(device=device, dtype=dtype)
    from handful.backbones import openclip  # takes seconds

    return openclip.load(str(name), weights, device=device, dtype=dtype)


def reload_backbone(name: str, device: Any = "auto", dtype: Any = "auto") -> Backbone:
    """Load a backbone by its recorded `Backbone.name`; one from files recorded both paths there."""
    if not name.startswith("{"):
        return load_backbone(name, device=device, dtype=dtype)
    try:
        paths = json.loads(name)
        config, weights = str(paths["config"]), str(paths["weights"])
    except (ValueError, KeyError, TypeError) as error:
        raise BackboneError(f"The recorded backbone {name[:80]!r} can't be read.") from error
    return load_backbone(config, weights, device=device, dtype=dtype)


def _reduce(backbone: Backbone) -> tuple[Any, ...]:
    return reload_backbone, (backbone.name, str(backbone.device), str(backbone.dtype))


copyreg.pickle(Backbone, _reduce)  # a pickled backbone is its name and its place

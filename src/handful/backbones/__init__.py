"""Frozen image-text models. Knows nothing of data sets."""

from __future__ import annotations

import copyreg
import json
import re
from pathlib import Path
from typing import Any

from handful.backbones.base import Backbone
from handful.backbones.tower import Block, Tower
from handful.errors import BackboneError, unexpected
from handful.files import allow_no_temporary_folder

__all__ = ["Backbone", "Block", "Tower", "load_backbone", "recorded_files", "reload_backbone"]

allow_no_temporary_folder()


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


def recorded_files(name: str) -> tuple[str, str] | None:
    """Give the paths of config and weights that a `Backbone.name` records; None for one that has a name."""
    if not name.startswith("{"):
        return None
    try:
        paths = json.loads(name)
        return str(paths["config"]), str(paths["weights"])
    except (ValueError, KeyError, TypeError) as error:
        raise BackboneError(f"The recorded backbone {name[:80]!r} can't be read.") from error


def reload_backbone(
    name: str,
    backbone: str | Path | None = None,
    weights: str | Path | None = None,
    *,
    device: Any = "auto",
    dtype: Any = "auto",
) -> Backbone:
    """Load a backbone by its recorded `Backbone.name`, or from where it is now.

    Parameters
    ----------
    name
        As it was recorded; one from files recorded both paths.
    backbone, weights
        As `load_backbone` takes them, in place of what is recorded. Of files, each stands for itself: weights
        alone belong to the recorded config; those of a config alone lie beside it, or where they were.

    Raises
    ------
    ParameterError
        Weights are given, and neither is a config, nor was one recorded.
    BackboneError
        As `load_backbone` does.
    """
    files = recorded_files(name)
    if backbone is None and files is not None:
        backbone, weights = files[0], weights or files[1]
    elif backbone is None and weights is not None:
        raise unexpected("weights", str(weights), "none without a backbone, the config.json of these weights")
    elif files is not None and weights is None and str(backbone).endswith(".json"):
        beside = Path(str(backbone)).parent / re.split(r"[\\/]", files[1])[-1]
        weights = beside if beside.is_file() else files[1]
    return load_backbone(backbone or name, weights, device=device, dtype=dtype)


def _restored(name: str, device: str, dtype: str) -> Backbone:
    return reload_backbone(name, device=device, dtype=dtype)


def _reduce(backbone: Backbone) -> tuple[Any, ...]:
    return _restored, (backbone.name, str(backbone.device), str(backbone.dtype))


copyreg.pickle(Backbone, _reduce)  # a pickled backbone is its name and its place

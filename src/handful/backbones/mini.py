"""The embedded demonstration backbone.

`assets/mini/model.safetensors` holds open_clip's state dict in float16, but for the token table: it
holds `token_embedding.kept`, the ids that training touched, and `token_embedding.rows`, their
vectors and, last, the one vector that every other token shares. `tools/train_mini.py` trained that
last row too, by putting it in the place of a word now and then.
"""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from handful.backbones import openclip
from handful.backbones.base import Backbone
from handful.backbones.stem import Stem


def build(settings: dict[str, Any]) -> nn.Module:
    """Build `mini` with random weights: open_clip's CLIP with a stem for a patch embedding."""
    model = openclip.build(settings["model_cfg"])
    visual = cast(nn.Module, model.visual)
    visual.conv1 = Stem(**settings["stem_cfg"])
    return model


def expand_tokens(state: dict[str, Tensor], vocabulary: int) -> dict[str, Tensor]:
    """Write out the token table: kept rows at their ids, the shared row everywhere else."""
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    kept, rows = state.pop("token_embedding.kept"), state.pop("token_embedding.rows")
    table = rows[-1].expand(vocabulary, -1).clone()
    table[kept.long()] = rows[:-1]
    return state | {"token_embedding.weight": table}


def load(**place: Any) -> Backbone:
    """Load the embedded backbone; nothing is fetched."""
    with as_file(files("handful").joinpath("assets/mini")) as folder:
        settings = openclip.read_config(Path(folder) / "config.json")
        state = load_file(Path(folder) / "model.safetensors")
    with torch.random.fork_rng(devices=[]):  # random weights, soon replaced, must cost no one's seed
        model = build(settings)
    text_cfg = settings["model_cfg"]["text_cfg"]
    model.load_state_dict(expand_tokens(state, text_cfg["vocab_size"]))
    model.to(memory_format=torch.channels_last)
    tokenizer = openclip.build_tokenizer(text_cfg, Path(folder))
    preprocess = settings["preprocess_cfg"] | {"size": settings["model_cfg"]["vision_cfg"]["image_size"]}
    return openclip.wrap("mini", model, tokenizer, preprocess, **place)

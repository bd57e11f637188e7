"""The embedded demonstration backbone.

`assets/mini/model.safetensors` holds the state dict in float16, but for the token table: it holds
`token_embedding.kept`, the ids that training touched, and `token_embedding.rows`, their vectors and,
last, the one vector that every other token shares. `tools/train_mini.py` trained that last row too, by
putting it in the place of a word now and then.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from importlib.resources import files
from typing import Any

import torch
from safetensors.torch import load as read_tensors
from torch import Tensor

from handful.backbones.base import Backbone
from handful.backbones.clip import Clip
from handful.backbones.stem import Stem


class SimpleTokenizer:
    """open_clip's tokenizer of this name, built when the first text is read: that takes seconds.

    The name is a part of the fingerprint.
    """

    def __init__(self, context: int) -> None:
        self.context = context

    @cached_property
    def built(self) -> Any:
        """open_clip's tokenizer."""
        from open_clip import SimpleTokenizer as Built

        return Built(context_length=self.context)

    def __call__(self, texts: list[str]) -> Tensor:
        """Turn texts into tokens `[N, L]`."""
        return self.built(texts)

    def encode(self, text: str) -> list[int]:
        """Give a text's tokens, without start and end."""
        return self.built.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """Write tokens out."""
        return self.built.decode(tokens)


def expand_tokens(state: dict[str, Tensor], vocabulary: int) -> dict[str, Tensor]:
    """Write out the token table: kept rows at their ids, the shared row everywhere else."""
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    kept, rows = state.pop("token_embedding.kept"), state.pop("token_embedding.rows")
    table = rows[-1].expand(vocabulary, -1).clone()
    table[kept.long()] = rows[:-1]
    return state | {"token_embedding.weight": table}


def load(**place: Any) -> Backbone:
    """Load the embedded backbone; nothing is fetched."""
    folder = files("handful").joinpath("assets/mini")
    settings = json.loads(folder.joinpath("config.json").read_bytes())
    state = read_tensors(folder.joinpath("model.safetensors").read_bytes())
    config = settings["model_cfg"]
    with torch.device("meta"):  # no memory, no time and no one's random numbers for weights to be replaced
        model = Clip(Stem(**settings["stem_cfg"]), **config)
    model.load_state_dict(expand_tokens(state, config["text_cfg"]["vocab_size"]), assign=True)
    model.to(memory_format=torch.channels_last)
    tokenizer = SimpleTokenizer(config["text_cfg"]["context_length"])
    preprocess = settings["preprocess_cfg"] | {"size": config["vision_cfg"]["image_size"]}
    return Backbone("mini", model, tokenizer, preprocess, **place)

"""Backbones from open_clip: by tag, from the Hugging Face hub, or from a config and a file."""

from __future__ import annotations

import json
import logging
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit
from urllib.request import getproxies

import open_clip
from safetensors import SafetensorError
from torch import Tensor, nn

from handful.backbones.base import Backbone
from handful.errors import BackboneError, WeightsUnavailable, unexpected

WAYS_OUT = (
    "Three ways out: name a model whose weights are already cached here "
    '(load_backbone("ViT-B-16/openai") after one download on a machine with a network); give files, '
    'load_backbone("config.json", weights="model.safetensors"); or use the embedded '
    'demonstration model, load_backbone("mini").'
)
OPENAI_MARKS = {"input_resolution", "context_length", "vocab_size"}


def load(name: str, weights: str | Path | None = None, **place: Any) -> Backbone:
    """Load `model/tag`, `hf-hub:org/name`, or a config file with `weights=`."""
    if weights is not None or name.endswith(".json"):
        return _load_files(Path(name), weights, **place)
    model_name, _, tag = name.partition("/") if not name.startswith("hf-hub:") else (name, "", "")
    quick_gelu = False
    if tag:
        known = open_clip.list_models()
        if model_name not in known:
            raise unexpected(
                "backbone",
                name,
                "'mini', an open_clip 'model/tag', 'hf-hub:org/name' or a config.json",
                f"Models near it: {_near(model_name, known)}.",
            )
        tags = open_clip.list_pretrained_tags_by_model(model_name)
        if tag not in tags:
            raise unexpected("backbone", name, f"a tag of {model_name}: {tags}")
        # OpenAI's weights were trained with QuickGELU; the plain config would load them wrongly.
        quick_gelu = bool(open_clip.get_pretrained_cfg(model_name, tag).get("quick_gelu"))
    elif not name.startswith("hf-hub:"):
        raise unexpected(
            "backbone", name, "'mini', an open_clip 'model/tag', 'hf-hub:org/name' or a config.json"
        )
    try:
        with _calmly():
            model, _, _ = open_clip.create_model_and_transforms(
                model_name, tag or None, force_quick_gelu=quick_gelu, require_pretrained=True
            )
            tokenizer = open_clip.get_tokenizer(model_name)
    except Exception as error:  # whatever the hub's client raises without a network
        raise WeightsUnavailable(
            f"Got backbone={name!r}, and its weights are neither cached on this machine nor could "
            f"they be fetched ({_last_line(error)}). {WAYS_OUT}"
        ) from error
    return Backbone(name, model, tokenizer, model.visual.preprocess_cfg, **place)


@contextmanager
def _calmly() -> Iterator[None]:
    """Keep the clients' chatter down, and spare a minute of retries where there is no network.

    Without one, the hub's client looks into its cache only.
    """
    from huggingface_hub import constants

    offline, disabled = constants.HF_HUB_OFFLINE, logging.root.manager.disable
    constants.HF_HUB_OFFLINE = offline or not _reachable(constants.ENDPOINT)
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        logging.disable(disabled)


def _reachable(endpoint: str) -> bool:
    """Say whether a web address answers, or a proxy may answer for it."""
    address = urlsplit(endpoint)
    if getproxies().get(address.scheme):
        return True
    try:
        with socket.create_connection((address.hostname or "", address.port or 443), timeout=3):
            return True
    except OSError:
        return False


def _last_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"


def _near(name: str, known: list[str]) -> list[str]:
    from difflib import get_close_matches

    return get_close_matches(name, known, 4, 0.3)


def _load_files(config: Path, weights: str | Path | None, **place: Any) -> Backbone:
    """Load open_clip's config form, with or without the `model_cfg` wrapper, and a weights file."""
    settings = read_config(config)
    if weights is None:
        raise BackboneError(
            f'Got backbone={str(config)!r} without weights. Give weights="model.safetensors".'
        )
    if not Path(weights).is_file():
        raise WeightsUnavailable(f"Got weights={str(weights)!r}, and there is no such file. {WAYS_OUT}")
    model_cfg = dict(settings.get("model_cfg", settings))
    try:
        model = build(model_cfg)
        state = open_clip.factory.load_state_dict(str(weights))
        if set(state) >= OPENAI_MARKS and not model_cfg.get("quick_gelu"):
            raise BackboneError(
                f"{weights} holds OpenAI's weights, which were trained with QuickGELU, and {config} "
                'does not say so: features would be wrong without a word. Add "quick_gelu": true.'
            )
        open_clip.load_checkpoint(model, str(weights))
    except BackboneError:
        raise
    except (
        RuntimeError,
        ValueError,
        KeyError,
        TypeError,
        OSError,
        SafetensorError,
        EOFError,
    ) as error:
        raise BackboneError(
            f"{weights} does not fit {config}: {_last_line(error)}. Give the config that belongs to "
            "the weights, in open_clip's form."
        ) from error
    except Exception as error:  # pickle's own family, when weights_only refuses a file
        raise BackboneError(
            f"{weights} can't be read as weights ({_last_line(error)}). Give a safetensors file, or "
            "a state dict saved by torch.save."
        ) from error
    tokenizer = build_tokenizer(model_cfg["text_cfg"], config.parent)
    preprocess = dict(settings.get("preprocess_cfg", {}), size=cast(Any, model.visual).image_size)
    name = json.dumps({"config": str(config.resolve()), "weights": str(Path(weights).resolve())})
    return Backbone(name, model, tokenizer, preprocess, **place)


def read_config(config: Path) -> dict[str, Any]:
    """Read a model config in open_clip's JSON form."""
    try:
        settings = json.loads(config.read_bytes())
    except OSError as error:
        raise BackboneError(f"Got config={str(config)!r}: {error.strerror or error}.") from error
    except ValueError as error:
        raise BackboneError(f"{config} is not JSON ({error}).") from error
    inner = settings.get("model_cfg", settings) if isinstance(settings, dict) else {}
    if not {"embed_dim", "vision_cfg", "text_cfg"} <= set(inner):
        raise BackboneError(
            f"{config} is not an open_clip model config: expected embed_dim, vision_cfg and text_cfg, "
            f"at the top or under model_cfg, got {sorted(inner)[:8]}."
        )
    return cast("dict[str, Any]", settings)


def build(model_cfg: dict[str, Any]) -> nn.Module:
    """Build `CLIP` or `CustomTextCLIP` with random weights from an open_clip model config."""
    settings = dict(model_cfg)
    custom = settings.pop("custom_text", False) or "hf_model_name" in settings["text_cfg"]
    return cast(nn.Module, (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**settings))


def build_tokenizer(text_cfg: dict[str, Any], folder: Path) -> Callable[[list[str]], Tensor]:
    """Build the tokenizer that a text config asks for; a named one may lie beside the config."""
    length = text_cfg.get("context_length", 77)
    named = text_cfg.get("hf_tokenizer_name")
    if not named:
        return cast(
            "Callable[[list[str]], Tensor]",
            open_clip.SimpleTokenizer(context_length=length, **text_cfg.get("tokenizer_kwargs", {})),
        )
    from open_clip.tokenizer import HFTokenizer

    source = str(folder) if (folder / "tokenizer.json").exists() else named
    try:
        return cast("Callable[[list[str]], Tensor]", HFTokenizer(source, context_length=length))
    except Exception as error:
        raise WeightsUnavailable(
            f"The tokenizer {named!r} is not on this machine ({_last_line(error)}). Put its "
            f"tokenizer.json beside the config in {folder}."
        ) from error

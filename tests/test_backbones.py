"""Backbones of every kind, their towers, files and errors."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from backbone_configs import RESNET
from conftest import TINY, write_model
from safetensors.torch import load_file
from sklearn.base import clone
from torch import Tensor

import handful
from handful.backbones import Tower


def through_seams(tower: Tower, x: Tensor, mask: Tensor | None) -> Tensor:
    """Run tokens `[N, L, D]` through the blocks by the seams alone."""
    for block in tower.blocks:
        weight, bias = block.qkv
        n, length, width = x.shape
        qkv = F.linear(block.norm1(x), weight, bias).view(n, length, 3, block.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + block.scale1(block.out(out.transpose(1, 2).reshape(n, length, width)))
        x = x + block.scale2(block.mlp(block.norm2(x)))
    return x


def test_the_same_weights_in_another_structure_are_another_backbone(tmp_path: Path):
    vision = TINY["vision_cfg"]
    text = TINY["text_cfg"]
    configs = [
        TINY,
        TINY | {"quick_gelu": True},
        TINY | {"vision_cfg": vision | {"pool_type": "avg"}},
        TINY | {"vision_cfg": vision | {"head_width": 8}},
        TINY | {"text_cfg": text | {"heads": 4}},
        TINY | {"text_cfg": text | {"norm_kwargs": {"eps": 0.1}}},
        TINY | {"text_cfg": text | {"act_kwargs": {"approximate": "tanh"}}},
    ]
    found = {
        handful.load_backbone(*write_model(tmp_path / str(n), config), device="cpu").fingerprint
        for n, config in enumerate([*configs, TINY])
    }
    assert len(found) == 7  # features are cached by it


@torch.no_grad()
def test_text_seams_are_the_whole_tower(any_vit: handful.Backbone):
    tower, tokens = any_vit.text, any_vit.tokenize(["a photo of a cat.", "two words"])
    x = tower.embedding(tokens) + tower.positions[: tokens.shape[1]]
    length = x.shape[1]
    mask = torch.full((length, length), -torch.inf).triu(1) if tower.causal else None
    x = tower.final_norm(through_seams(tower, x, mask))
    end = tokens.argmax(1) if tower.causal else torch.full((2,), length - 1)
    ours = x[torch.arange(2), end] @ tower.projection
    torch.testing.assert_close(ours, any_vit.encode_text(tokens), atol=1e-5, rtol=1e-4)
    assert tower.width == x.shape[2]


@torch.no_grad()
def test_image_seams_are_the_whole_tower(any_vit: handful.Backbone):
    tower, side = any_vit.image, any_vit.image_size
    pixels = torch.randn(2, 3, side, side)
    seen = []
    handle = tower.entry.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    out = []
    after = tower.blocks[-1].module.register_forward_hook(lambda m, args, y: out.append(y))
    any_vit.encode_image(pixels)
    handle.remove()
    after.remove()
    torch.testing.assert_close(through_seams(tower, seen[0], None), out[0], atol=1e-5, rtol=1e-4)
    assert seen[0].shape[1:] == (len(tower.positions), tower.width)


def test_which_towers_are_causal(any_vit: handful.Backbone):
    assert any_vit.text.causal == (any_vit.bias is None)


@torch.no_grad()
def test_features_come_with_the_vector_before_the_projection(any_vit: handful.Backbone):
    pixels = torch.randn(2, 3, any_vit.image_size, any_vit.image_size)
    features, hidden = any_vit.encode_image_hidden(pixels)
    torch.testing.assert_close(features, any_vit.model.encode_image(pixels))
    projection = any_vit.image.projection
    again = hidden @ projection if isinstance(projection, Tensor) else projection(hidden)
    torch.testing.assert_close(features, again)


@torch.no_grad()
def test_resnet_has_features_but_no_seams(tmp_path: Path):
    backbone = handful.load_backbone(*write_model(tmp_path, RESNET), device="cpu")
    pixels = torch.randn(2, 3, 32, 32)
    features, hidden = backbone.encode_image_hidden(pixels)
    torch.testing.assert_close(features, backbone.model.encode_image(pixels), atol=1e-5, rtol=1e-4)
    assert hidden.shape == (2, backbone.model.visual.attnpool.c_proj.in_features)
    assert backbone.text.blocks
    with pytest.raises(handful.SeamError, match=r"MMA .*it is a ModifiedResNet.*TipAdapter"):
        backbone.image.require_blocks("MMA")


def test_wrapped_config_and_torch_file_give_the_same_backbone(tmp_path: Path):
    config, weights = write_model(tmp_path, TINY)
    plain = handful.load_backbone(config, weights=weights)
    torch.save(load_file(weights), tmp_path / "model.pt")
    (tmp_path / "wrapped.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": {}}))
    wrapped = handful.load_backbone(tmp_path / "wrapped.json", weights=tmp_path / "model.pt")
    assert plain.fingerprint == wrapped.fingerprint


def test_fingerprint_follows_weights_and_preprocessing(tmp_path: Path, tiny: handful.Backbone):
    same = handful.load_backbone(*write_model(tmp_path / "a", TINY))
    other = handful.load_backbone(*write_model(tmp_path / "b", TINY, seed=1))
    (tmp_path / "c.json").write_text(
        json.dumps({"model_cfg": TINY, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}})
    )
    brighter = handful.load_backbone(tmp_path / "c.json", weights=tmp_path / "a/model.safetensors")
    assert same.fingerprint == tiny.fingerprint
    assert len({tiny.fingerprint, other.fingerprint, brighter.fingerprint}) == 3


def test_hub_folder_form_loads_by_the_hub_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A model in the hub's cache loads without a network, by open_clip's own hub code."""
    config, weights = write_model(tmp_path / "made", TINY)
    repo = tmp_path / "hub/models--org--name"
    snapshot = repo / "snapshots/0123456789abcdef0123456789abcdef01234567"
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text(snapshot.name)
    wrapped = {"model_cfg": TINY, "preprocess_cfg": {}}
    (snapshot / "open_clip_config.json").write_text(json.dumps(wrapped))
    (snapshot / "open_clip_model.safetensors").write_bytes(weights.read_bytes())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    backbone = handful.load_backbone("hf-hub:org/name")
    assert backbone.fingerprint == handful.load_backbone(config, weights=weights).fingerprint


@pytest.mark.parametrize("name", ["ViT-B-32/laion2b_s34b_b79k", "ViT-B-16/openai", "hf-hub:nobody/nothing"])
def test_weights_that_cannot_be_had_name_three_ways_out(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("open_clip.pretrained.download_pretrained_from_url", _no_network)
    with pytest.raises(handful.WeightsUnavailable, match=r'cached here.*weights="model.*"mini"'):
        handful.load_backbone(name)


def test_without_a_network_the_hub_is_not_asked_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.create_connection", _no_network)
    monkeypatch.setattr("handful.backbones.openclip.getproxies", dict)
    with pytest.raises(handful.WeightsUnavailable):
        handful.load_backbone("hf-hub:org/name")
    assert constants.HF_HUB_OFFLINE is False
    assert caplog.text == ""


def _no_network(*args: object, **settings: object) -> str:
    raise OSError("no network")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("ViT-B-99/openai", "ViT-B-"),
        ("ViT-B-16/nope", "openai"),
        ("ViT-B-16", "model/tag"),
        ("", "mini"),
    ],
)
def test_unknown_names(name: str, hint: str):
    with pytest.raises(handful.ParameterError, match=hint):
        handful.load_backbone(name)


def test_openai_weights_need_quick_gelu(tmp_path: Path):
    config, weights = write_model(tmp_path, TINY)
    marks = {name: torch.tensor(1) for name in ("input_resolution", "context_length", "vocab_size")}
    torch.save(load_file(weights) | marks, tmp_path / "openai.pt")
    with pytest.raises(handful.BackboneError, match="QuickGELU"):
        handful.load_backbone(config, weights=tmp_path / "openai.pt")


def test_openai_tags_are_built_with_quick_gelu(monkeypatch: pytest.MonkeyPatch):
    asked = {}

    def create(name: str, tag: str, **settings: object):
        asked.update(settings, name=name, tag=tag)
        raise RuntimeError("stop here")

    monkeypatch.setattr(open_clip, "create_model_and_transforms", create)
    for name, expected in (("ViT-B-16/openai", True), ("ViT-B-16/laion2b_s34b_b88k", False)):
        with pytest.raises(handful.WeightsUnavailable):
            handful.load_backbone(name)
        assert asked["force_quick_gelu"] is expected


@pytest.mark.parametrize("spoil", ["other config", "cut", "text", "missing", "no json", "not a config"])
def test_files_that_do_not_fit(tmp_path: Path, spoil: str):
    config, weights = write_model(tmp_path, TINY)
    if spoil == "other config":
        config.write_text(json.dumps(TINY | {"embed_dim": 24}))
    elif spoil == "cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif spoil == "text":
        weights = tmp_path / "weights.pt"
        weights.write_text("hello")
    elif spoil == "missing":
        weights = tmp_path / "nothing.safetensors"
    elif spoil == "no json":
        config.write_text("{")
    else:
        config.write_text('{"layers": 3}')
    with pytest.raises(handful.BackboneError):
        handful.load_backbone(config, weights=weights)


def test_a_pickle_is_never_executed(tmp_path: Path):
    config, _ = write_model(tmp_path, TINY)
    trap = tmp_path / "trap"

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (trap,))

    torch.save({"weight": Bomb()}, tmp_path / "model.pt")
    with pytest.raises(handful.BackboneError):
        handful.load_backbone(config, weights=tmp_path / "model.pt")
    assert not trap.exists()


def test_a_backbone_is_never_copied(tiny: handful.Backbone):
    clf = handful.TipAdapter(tiny, alpha=2.0)
    assert clone(clf).backbone is tiny
    assert copy.deepcopy({"b": tiny})["b"] is tiny


def test_bf16_is_only_for_machines_that_have_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("handful.backbones.base.has_bf16", lambda device: False)
    with pytest.warns(UserWarning, match=r"no bfloat16 instructions.*float32 is used"):
        full = handful.load_backbone(*write_model(tmp_path, TINY), device="cpu", dtype="bfloat16")
    assert full.dtype == torch.float32


def test_device_and_dtype(tiny: handful.Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("handful.backbones.base.has_bf16", lambda device: True)
    assert tiny.dtype == torch.float32
    half = handful.load_backbone(*write_model(tmp_path, TINY), device="cpu", dtype="bfloat16")
    pixels = torch.randn(4, 3, 32, 32)
    cosine = F.cosine_similarity(half.encode_image(pixels), tiny.encode_image(pixels))
    assert half.encode_image(pixels).dtype == torch.float32
    assert 0.99 < float(cosine.min()) < 1
    assert 0.99 < tiny.cosine_to_float32() < 1
    assert tiny.dtype == torch.float32
    with pytest.raises(handful.ParameterError, match="float16"):
        handful.load_backbone(*write_model(tmp_path, TINY), dtype="float16")
    with pytest.raises(handful.ParameterError, match="device='abacus'"):
        handful.load_backbone("mini", device="abacus")


def test_a_text_longer_than_the_tower_is_not_cut_without_a_word(tiny: handful.Backbone):
    with pytest.raises(handful.ParameterError, match=r"text of \d+ tokens.*reads 77"):
        tiny.tokenize(["word " * 80])

"""Backbones load by every path, show their seams, and refuse what would be wrong without a word."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, write_model
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import load_file
from sklearn.base import clone
from torch import Tensor

import handful
from handful.backbones import Tower
from handful.backbones.preprocessing import DEFAULTS, Preprocessing
from handful.backbones.stem import Stem

RESNET = TINY | {"vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}}
SIGLIP = {
    "embed_dim": 16,
    "custom_text": True,
    "init_logit_bias": -10.0,
    "vision_cfg": {
        "image_size": 160, "timm_model_name": "test_vit", "timm_model_pretrained": False,
        "timm_pool": "avg", "timm_proj": "linear",
    },
    "text_cfg": {
        "context_length": 16, "width": 32, "heads": 2, "layers": 2, "no_causal_mask": True,
        "pool_type": "last",
    },
}  # fmt: skip


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


@pytest.fixture(params=["clip", "custom", "mini", "siglip"])
def any_vit(request: pytest.FixtureRequest, mini: handful.Backbone, tmp_path: Path) -> handful.Backbone:
    if request.param == "mini":
        return mini
    config = {"clip": TINY, "custom": TINY | {"custom_text": True}, "siglip": SIGLIP}[request.param]
    return handful.load_backbone(*write_model(tmp_path, config), device="cpu")


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


def test_mini_is_what_its_card_says(mini: handful.Backbone):
    state = mini.model.state_dict()
    beside = sum(v.numel() for k, v in state.items() if k != "token_embedding.weight")
    assert beside < 10_000_000
    assert mini.image_size == 64
    assert mini.text.causal
    assert len(mini.text.blocks) == 6
    assert len(mini.image.blocks) == 4
    table = state["token_embedding.weight"]
    rows, counts = table.unique(dim=0, return_counts=True)
    assert table.shape == (49408, 192)
    assert counts.max() == len(table) - len(rows) + 1  # one row is shared, every other is its own


def as_open_clip_builds_it(mini: handful.Backbone) -> handful.Backbone:
    """Build `mini` of open_clip's own modules, as it was trained."""
    folder = Path(handful.__file__).parent / "assets/mini"
    config = json.loads((folder / "config.json").read_text())
    model = open_clip.CLIP(**config["model_cfg"])
    model.visual.conv1 = Stem(**config["stem_cfg"])
    model.load_state_dict(mini.model.state_dict())
    model.to(memory_format=torch.channels_last)
    settings = config["preprocess_cfg"] | {"size": 64}
    dtype = str(mini.dtype).removeprefix("torch.")
    return handful.Backbone("mini", model, open_clip.SimpleTokenizer(), settings, device="cpu", dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mini_is_what_open_clip_builds(dtype: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("handful.backbones.base.has_bf16", lambda device: True)
    ours = handful.load_backbone("mini", device="cpu", dtype=dtype)
    theirs = as_open_clip_builds_it(ours)
    assert ours.facts == theirs.facts
    assert ours.fingerprint == theirs.fingerprint
    assert ours.fingerprint[:16] == "8ee709b94b1d4c98"  # caches and saved classifiers depend on it
    texts = ["a photo of a cat.", "two words", "", "ü 漢字"]
    assert torch.equal(ours.tokenize(texts), theirs.tokenize(texts))
    assert torch.equal(ours.encode_text(ours.tokenize(texts)), theirs.encode_text(theirs.tokenize(texts)))
    for count in (1, 5):
        pixels = torch.randn(count, 3, 64, 64)
        found, expected = ours.encode_image_hidden(pixels), theirs.encode_image_hidden(pixels)
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_loading_mini_costs_no_one_s_random_numbers_and_reads_no_text():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    backbone = handful.load_backbone("mini", device="cpu")
    assert torch.equal(before, torch.random.get_rng_state())
    assert backbone.joint_width == 256
    assert "built" not in vars(backbone.tokenizer)
    assert not [name for name, value in backbone.model.named_buffers() if value.is_meta]


def test_the_joint_width_is_that_of_the_features(any_vit: handful.Backbone):
    assert any_vit.joint_width == any_vit.encode_text(any_vit.tokenize(["X"])).shape[1]


def test_the_joint_width_of_towers_without_a_projection(tmp_path: Path):
    config = RESNET | {
        "embed_dim": 32,
        "text_cfg": TINY["text_cfg"] | {"proj_type": "none"},
        "custom_text": True,
    }
    backbone = handful.load_backbone(*write_model(tmp_path, config), device="cpu")
    assert backbone.text.projection is None and backbone.image.projection is None
    assert backbone.joint_width == 32


SIZES = [(64, 64), (48, 48), (31, 47), (333, 200), (7, 5), (1, 40), (40, 1), (1, 1), (97, 96), (150, 149)]


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).convert(mode)


@pytest.mark.parametrize("size", [48, 64, [40, 56], (57, 33)], ids=str)
@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "random"])
def test_preprocessing_is_open_clip_s(size: object, mode: str, interpolation: str):
    given = {"size": size, "resize_mode": mode, "interpolation": interpolation, "fill_color": 77}
    given |= {"mean": [0.1, 0.2, 0.3], "std": (0.4, 0.5, 0.6)}
    ours, theirs = (
        Preprocessing.read(DEFAULTS | given),
        image_transform_v2(PreprocessCfg(**given), is_train=False),
    )
    for image in [*(noise(*shape) for shape in SIZES), noise(70, 90, "L"), noise(90, 70, "RGBA")]:
        assert torch.equal(ours(image), theirs(image)), image.size


@pytest.mark.parametrize("given", [{}, {"mean": 0.5, "std": 0.25}, {"mean": None, "std": []}], ids=str)
def test_means_may_be_one_number_or_none(given: dict):
    ours, theirs = (
        Preprocessing.read(DEFAULTS | given),
        image_transform_v2(PreprocessCfg(**given), is_train=False),
    )
    assert torch.equal(ours(noise(50, 60)), theirs(noise(50, 60)))


@pytest.mark.parametrize("size", [48, (57, 33)], ids=str)
@pytest.mark.parametrize("scale", [(0.5, 1.0), (0.08, 1.0), (0.01, 0.02)], ids=str)
def test_views_are_open_clip_s(size: object, scale: tuple[float, float]):
    ours = Preprocessing.read(DEFAULTS | {"size": size})
    theirs = image_transform_v2(PreprocessCfg(size=size), is_train=True, aug_cfg={"scale": scale})
    for shape in SIZES:
        for seed in (*range(6), 2**62 + 1):
            torch.manual_seed(seed)
            expected = theirs(noise(*shape))
            expected = expected.flip(-1) if torch.rand(()) < 0.5 else expected
            assert torch.equal(ours.view(noise(*shape), seed, scale), expected), (shape, seed)


def test_a_strip_keeps_a_pixel():
    longest = Preprocessing.read(DEFAULTS | {"size": 32, "resize_mode": "longest"})
    assert longest(noise(1, 999)).shape == (3, 32, 32)  # open_clip's own stops at a width of 0


def test_settings_that_a_config_leaves_out_are_open_clip_s():
    assert asdict(PreprocessCfg()) == DEFAULTS


@pytest.mark.parametrize(
    ("spoiled", "named"),
    [
        ({"resize_mode": "wide"}, "resize_mode 'wide'"),
        ({"interpolation": "nearest"}, "interpolation 'nearest'"),
        ({"mode": "L"}, "mode 'L'"),
        ({"mean": [0.5, 0.5]}, "not a number or 3"),
        ({"std": "wide"}, "not a number or 3"),
        ({"std": [0.2, 0.0, 0.2]}, "a std of 0"),
        ({"fill_color": [1, 2, 3]}, "fill_color as a grey level"),
    ],
)
def test_preprocessing_that_is_none(spoiled: dict, named: str, tmp_path: Path):
    config, weights = write_model(tmp_path, TINY)
    config.write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": spoiled}))
    with pytest.raises(handful.BackboneError, match=named):
        handful.load_backbone(config, weights=weights)


def test_views_are_seeded_and_leave_the_global_state(mini: handful.Backbone, digits: Path):
    from handful.data import decode

    image = decode(next((digits / "train/three").iterdir()))
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, again, other = (mini.view(image, seed, (0.5, 1.0)) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(before, torch.random.get_rng_state())

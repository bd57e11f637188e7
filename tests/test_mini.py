"""The embedded backbone is open_clip's to the bit, and so is preprocessing."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from backbone_configs import RESNET
from conftest import TINY, write_model
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

import handful
from handful.backbones.preprocessing import DEFAULTS, Preprocessing
from handful.backbones.stem import Stem


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

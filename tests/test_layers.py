"""What training inside a tower starts from, fine-tuning, and the analysis of layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from backbone_configs import RESNET, SIGLIP
from conftest import TINY, write_model
from towers_made import NAMES

import handful
from handful.analysis.layers import analyze_layers, cka, image_layers, text_layers, write_analysis
from handful.data import ImageSet
from handful.features.views import Views, room
from handful.schedule import seeded
from handful.towers import ImagePass

# -- what training starts from --------------------------------------------------------------------


@pytest.mark.parametrize("views", [0, 3])
def test_views_are_the_same_wherever_they_are_kept(
    tiny: handful.Backbone, photos: ImageSet, views: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path / "cache"))
    stage = handful.MMA(tiny).input_stage(tiny)
    kept = {
        keep: Views(tiny, photos.items, stage, views=views, seed=0, crop_scale=(0.5, 1.0), keep=keep)
        for keep in ("memory", "disk", "off", "auto")
    }
    assert kept["auto"].kept == "memory"
    rows = torch.tensor([4, 0, 4, 2])
    given = {keep: source.sample(rows, seeded(2)) for keep, source in kept.items()}
    for other in ("disk", "off"):
        torch.testing.assert_close(given[other], given["memory"], atol=1e-5, rtol=1e-4)
    if views:  # the crops that every other method sees
        features = handful.encode(tiny, photos, views=views, seed=0, crop_scale=(0.5, 1.0))
        above = ImagePass(tiny, handful.MMA(tiny).pairs(tiny)[1]["image"])
        torch.testing.assert_close(above(kept["memory"].states[0]), features.values[0], atol=1e-4, rtol=1e-4)
    del kept
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix not in (".safetensors", "")]


@pytest.mark.parametrize("cache", ["disk", "off"])
def test_a_fit_does_not_depend_on_where_views_are_kept(tiny: handful.Backbone, photos: ImageSet, cache: str):
    fits = [
        handful.MMA(tiny, width=4, epochs=2, views=2, cache=place).fit(photos) for place in ("memory", cache)
    ]
    np.testing.assert_allclose(*[fit.decision_function(photos) for fit in fits], atol=1e-4)


def test_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path / "not" / "yet"))
    assert room(1000) == "memory"
    monkeypatch.setattr("handful.features.views.free_memory", lambda: 100)
    assert room(1000) == "disk"
    assert room(10**18) == "off"


def test_fresh_crops(tiny: handful.Backbone, photos: ImageSet):
    one, other = (
        handful.MMA(tiny, width=4, epochs=2, views="online", seed=seed).fit(photos).losses_ for seed in (0, 0)
    )
    assert one == other
    assert handful.MMA(tiny, width=4, epochs=2, views="online", seed=1).fit(photos).losses_ != one


# -- fine-tuning ----------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [TINY, RESNET, SIGLIP], ids=["clip", "resnet", "siglip"])
def test_fine_tuning(config: dict, tmp_path: Path, photos: ImageSet):
    backbone = handful.load_backbone(*write_model(tmp_path / "model", config), device="cpu")
    before = backbone.fingerprint
    zero = handful.ZeroShot(backbone).fit(class_names=photos.class_names)
    still = handful.FineTuning(backbone, epochs=1, lr=1e-30, views=0).fit(photos)
    np.testing.assert_allclose(still.decision_function(photos), zero.decision_function(photos), atol=1e-3)
    clf = handful.FineTuning(backbone, epochs=20, lr=1e-4, views=0).fit(photos)
    assert clf.losses_[-1] < clf.losses_[0]
    del backbone.fingerprint
    assert backbone.fingerprint == before
    clf.save(tmp_path / "clf")
    again = handful.load(tmp_path / "clf", backbone)
    np.testing.assert_array_equal(again.predict_proba(photos), clf.predict_proba(photos))
    assert clf.with_classes(["cat", "owl", "dog"]).predict_proba(photos).shape == (len(photos), 3)


# -- layers ---------------------------------------------------------------------------------------


def test_layers_are_those_of_the_towers(any_pair: handful.Backbone, photos: ImageSet):
    images = image_layers(any_pair, photos.items)
    texts = text_layers(any_pair, NAMES)
    assert list(images) == ["embed", *map(str, range(1, len(any_pair.image.blocks) + 1)), "projection"]
    assert list(texts) == ["embed", *map(str, range(1, len(any_pair.text.blocks) + 1)), "projection"]
    features = handful.encode(any_pair, photos, cache=False).values[:, 0]
    torch.testing.assert_close(images["projection"], features, atol=1e-4, rtol=1e-4)
    tokens = any_pair.tokenize([f"a photo of a {name}." for name in NAMES])
    torch.testing.assert_close(texts["projection"], any_pair.encode_text(tokens), atol=1e-4, rtol=1e-4)
    last = images[str(len(any_pair.image.blocks))]
    leave = any_pair.image.leave
    if any_pair.image.reads_first:  # what a layer gives is what the tower would read there
        torch.testing.assert_close(leave(last[:, None]), features, atol=1e-4, rtol=1e-4)


def test_cka_knows_the_same_and_the_unrelated():
    x = torch.randn(200, 30, generator=seeded(0))
    turned = 3 * x @ torch.linalg.qr(torch.randn(30, 30, generator=seeded(1)))[0] + 5
    assert cka(x, turned) == pytest.approx(1, abs=1e-6)
    other = torch.randn(200, 300, generator=seeded(2))
    assert abs(cka(x, other)) < 0.05  # the plain estimate says 0.2
    with pytest.raises(handful.DataError, match="at least 4"):
        cka(x[:3], x[:3])


def test_a_layer_analysis(mini: handful.Backbone, digits: Path, tmp_path: Path, call):
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 255, (16, 16, 3), np.uint8) for _ in range(40)]
    names = ["sea", "sky", "sand", "snow", "soil"]
    sets = {
        "digits": ImageSet.from_folder(digits / "train", verify=False),
        "noise": ImageSet.from_lists(noise, [names[row % 5] for row in range(40)]),
    }
    found = analyze_layers(mini, sets, per_set=20, seeds=(1, 2))
    assert found.images == 20
    assert found.chance == 0.5
    assert len(found.scores) == len(mini.image.blocks) + len(mini.text.blocks) + 4
    assert all(score.mean > 0.9 for score in found.scores if score.side == "image")
    assert [pair.text_layer for pair in found.alignment] == ["embed", "2", "3", "4", "6", "projection"]
    again = analyze_layers(mini, sets, per_set=20, seeds=(1, 2))
    assert again == found
    paths = write_analysis(found, tmp_path / "out")
    assert [path.name for path in paths] == ["layers.json", "layers.md", "layers.png"]
    assert "| image | embed | 0.00 |" in paths[1].read_text()
    with pytest.raises(handful.DataError, match="at least 2"):
        analyze_layers(mini, {"digits": sets["digits"]})


def test_analyze_layers_on_the_command_line(digits: Path, tmp_path: Path, call):
    code, _, err = call("analyze", "layers", "--datasets", digits / "train", digits / "test")
    assert code == 1
    assert "class names that no other set has" in err

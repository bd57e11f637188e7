"""CLIP-Adapter, and hyper-parameters chosen on other images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from toys import NAMES, fit, parameters, toy

import handful
from handful.methods.features.clip_adapter.network import Adapted, Adapter
from handful.methods.features.tip_adapter import PUBLISHED, ranges_of
from handful.schedule import seeded


def zero_shot(features: torch.Tensor, text: torch.Tensor) -> np.ndarray:
    return (100 * F.normalize(features, dim=-1) @ text.T).numpy()


# -- CLIP-Adapter ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "count"), [(1024, 524_288), (512, 131_072)])
def test_an_adapter_has_the_published_parameters(width: int, count: int):
    clf = handful.ClipAdapter()
    sides = clf.start(width, {"image": 0.2, "text": 0.2}, seeded(0))
    assert parameters(Adapted(sides, torch.eye(3, width), 100.0)) == count


@pytest.mark.parametrize("side", ["image", "text", "both"])
def test_a_ratio_of_zero_is_zero_shot(side: str):
    clf = fit(handful.ClipAdapter(side=side, alpha=0, beta=0, selection="fixed", epochs=2, views=0))
    test, _, _ = toy(seed=5)
    np.testing.assert_allclose(clf.decision_function(test), zero_shot(test, toy()[2]), atol=2e-4)


def test_an_adapter_is_its_formula_and_knows_directions_only():
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(4, 16, generator=generator), torch.randn(16, 4, generator=generator)
    x = torch.randn(5, 16, generator=generator)
    adapter = Adapter(down, up, 0.6)
    blended = 0.6 * torch.relu(torch.relu(x @ down.T) @ up.T) + 0.4 * x
    torch.testing.assert_close(adapter(x), blended / blended.norm(dim=1, keepdim=True))
    torch.testing.assert_close(adapter(7.5 * x), adapter(x))
    assert bool((adapter.read(x) >= 0).all())


@pytest.mark.parametrize("side", ["image", "text", "both"])
def test_each_side_learns_and_round_trips(side: str, tmp_path: Path):
    clf = fit(handful.ClipAdapter(side=side, epochs=20, views=0), shots=6)
    test, truth, text = toy(20, seed=9)
    before = float((zero_shot(test, text).argmax(1) == truth).mean())
    assert clf.score(test, truth) >= before
    assert clf.selection_ == "support"
    named = {"image": ["alpha"], "text": ["beta"], "both": ["alpha", "beta"]}[side]
    assert all(0 <= clf.selected_[name] <= 0.95 for name in named)
    clf.save(tmp_path / "clf")
    again = handful.load(tmp_path / "clf")
    np.testing.assert_array_equal(again.decision_function(test), clf.decision_function(test))


def test_the_image_ratio_is_exact():
    """No ratio of a fine grid is better than the one that was found."""
    clf = handful.ClipAdapter(views=0)
    features, labels, text = toy(30, noise=2.0)
    sides = clf.start(16, {"image": 0.5, "text": 0.5}, seeded(3))
    model = Adapted(sides, text, 100.0)
    from handful.estimator import Validation

    found = model.search(Validation(features, torch.as_tensor(labels)))
    rows, truth = F.normalize(features, dim=-1), torch.as_tensor(labels)
    for ratio in np.linspace(0, 0.95, 200):
        adapter = Adapter(sides["image"].down.detach(), sides["image"].up.detach(), float(ratio))
        right = (Adapted({"image": adapter}, text, 100.0)(rows).argmax(1) == truth).double().mean()
        assert float(right) <= found + 1e-12
    assert float((model(rows).argmax(1) == truth).double().mean()) == pytest.approx(found)


def test_ratios_can_be_learned():
    clf = fit(handful.ClipAdapter(learn_ratio=True, alpha=0.3, epochs=20, views=0))
    assert clf.selection_ == "fixed"
    assert 0 < clf.selected_["alpha"] < 1
    assert clf.selected_["alpha"] != pytest.approx(0.3, abs=1e-4)


def test_at_one_shot_the_ratios_stay_and_the_output_says_so():
    clf = fit(handful.ClipAdapter(epochs=2, views=0), shots=1)
    assert (clf.selection_, clf.selected_["alpha"]) == ("fixed", pytest.approx(0.2))
    assert any("not searched" in note for note in clf.notes_)


def test_a_dead_adapter_is_told(monkeypatch: pytest.MonkeyPatch):
    def dead(self, width, ratios, generator):
        return {"image": Adapter(torch.ones(4, width), -torch.ones(width, 4), 0.2)}

    monkeypatch.setattr(handful.ClipAdapter, "start", dead)
    with pytest.warns(UserWarning, match="adapter died"):
        clf = fit(handful.ClipAdapter(epochs=3, views=0, selection="fixed"))
    assert any("only zeros" in note for note in clf.notes_)
    assert clf.selected_["image_zeros"] == 1


def test_the_learning_rate_is_coops_at_clips_scale():
    assert fit(handful.ClipAdapter(epochs=1, views=0, selection="fixed")).selected_["lr"] == 0.002


def test_adapters_serve_other_class_names(mini: handful.Backbone, support: handful.ImageSet):
    clf = handful.ClipAdapter(mini, epochs=2, views=0).fit(support)
    other = clf.with_classes(["cat", "dog"])
    assert other.classes_.tolist() == ["cat", "dog"]
    same = clf.with_classes(support.class_names)
    np.testing.assert_allclose(same.decision_function(support), clf.decision_function(support), atol=1e-4)


# -- choosing on other images ---------------------------------------------------------------------

CHOOSERS = [
    lambda way: handful.TipAdapter(selection=way),
    lambda way: handful.TipAdapterF(selection=way, epochs=2, views=0),
    lambda way: handful.ClipAdapter(selection=way, epochs=2, views=0),
    lambda way: handful.LogisticProbe(selection=way),
]


@pytest.mark.parametrize("make", CHOOSERS)
@pytest.mark.parametrize("way", ["val", "oracle"])
def test_val_and_oracle_need_images_and_write_themselves_down(make, way: str, tmp_path: Path):
    with pytest.raises(handful.ParameterError, match="validation="):
        fit(make(way))
    seen, truth, _ = toy(8, seed=4)
    clf = fit(make(way), validation=(seen, np.array(NAMES)[truth]))
    assert clf.selection_ == way
    clf.save(tmp_path / "clf")
    assert f"selection `{way}`" in (tmp_path / "clf" / "README.md").read_text()


def test_validation_that_no_one_looks_at_is_told():
    seen, truth, _ = toy(8, seed=4)
    clf = fit(handful.TipAdapter(), validation=(seen, truth))
    assert any("validation was not used" in note for note in clf.notes_)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ((np.ones((2, 16), np.float32), ["cat", "zebra"]), "does not know"),
        ((np.ones((2, 16), np.float32), ["cat"]), "as many"),
        ((np.ones((2, 9), np.float32), ["cat", "dog"]), "16 wide"),
        ((np.ones((2, 16), np.float32), [0, 3]), "leave 0 to 2"),
        ([1, 2], "validation"),
    ],
)
def test_bad_validation(given: object, error: str):
    with pytest.raises((handful.DataError, handful.ParameterError), match=error):
        fit(handful.TipAdapter(selection="val"), validation=given)


def test_published_ranges_are_the_published_grid():
    alphas, betas = ranges_of("caltech101")
    assert (len(betas), betas[0], alphas[0]) == (200, 0.1, 0.1)
    assert ranges_of("imagenet")[1][-1] == pytest.approx(6.9655)
    assert ranges_of("imagenet")[0][1] == pytest.approx(2.855)
    assert len(PUBLISHED) == 11
    with pytest.raises(handful.ParameterError, match="ranges"):
        fit(handful.TipAdapter(ranges="cifar"))

"""CLIP-Adapter, Tip-Adapter-F, Meta-Adapter and the linear probes: the papers' checks."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import nn

import handful
from handful.meta_training import Published
from handful.methods.features.clip_adapter.network import Adapted, Adapter
from handful.methods.features.linear_probe import MovedWeights, class_confidence
from handful.methods.features.tip_adapter import PUBLISHED, CacheHead, ranges_of
from handful.methods.features.tip_adapter.trained import TrainedCache
from handful.protocols import coop_probe_draw, coop_probe_draws
from handful.protocols import fit as fit_draw
from handful.refiner import Refiner
from handful.schedule import Schedule, seeded, tip_schedule
from handful.train import descend, shuffled, train

NAMES = ["cat", "dog", "red panda"]


def toy(shots: int = 4, width: int = 16, seed: int = 0, noise: float = 0.8):
    """Features around one centre for each of three classes, and text weights near the centres."""
    centres = torch.randn(3, width, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed + 1)
    labels = torch.arange(3).repeat_interleave(shots)
    features = centres[labels] + noise * torch.randn(len(labels), width, generator=generator)
    text = F.normalize(centres + 1.5 * torch.randn(3, width, generator=generator), dim=-1)
    return features, labels.numpy(), text


def fit(clf: handful.FewShotClassifier, shots: int = 4, **more: object) -> handful.FewShotClassifier:
    features, labels, text = toy(shots)
    return clf.fit(features, labels, class_names=NAMES, class_weights=text, **more)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def zero_shot(features: torch.Tensor, text: torch.Tensor) -> np.ndarray:
    return (100 * F.normalize(features, dim=-1) @ text.T).numpy()


# -- CLIP-Adapter ------------------------------------------------------------------------------------


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


# -- choosing on other images ------------------------------------------------------------------------

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


# -- Tip-Adapter-F -----------------------------------------------------------------------------------


def test_trained_keys_are_counted_and_start_as_tip_adapter():
    clf = fit(handful.TipAdapter(), shots=5)
    model = TrainedCache(clf.head_)
    assert parameters(model) == 15 * 16
    x, _, _ = toy(seed=3)
    np.testing.assert_allclose(model(x).detach().numpy(), clf.decision_function(x), atol=1e-5)


def test_training_lowers_the_loss_and_leaves_keys_as_they_became():
    clf = fit(handful.TipAdapterF(epochs=40, views=0))
    assert clf.losses_[-1] < clf.losses_[0]
    assert not torch.allclose(clf.head_.keys.norm(dim=1), torch.ones(12), atol=1e-6)
    assert clf.selected_ == {"alpha": 1.17, "beta": 5.5, "epochs": 40}


def test_the_oracle_keeps_its_best_epoch():
    seen, truth, _ = toy(30, seed=4, noise=3.0)
    clf = fit(handful.TipAdapterF(epochs=6, views=0, selection="oracle", lr=0.5), validation=(seen, truth))
    assert 1 <= clf.selected_["epochs"] <= 6
    last = fit(handful.TipAdapterF(epochs=6, views=0, selection="val", lr=0.5), validation=(seen, truth))
    assert clf.score(seen, truth) >= last.score(seen, truth)


def test_the_tip_familys_schedule_falls_at_every_step():
    schedule = tip_schedule(2, 4, 0.1)
    rates: list[float] = []

    class Watched(Schedule):
        def learning_rate(self, epoch: float) -> float:
            rates.append(super().learning_rate(epoch))
            return rates[-1]

    watched = Watched(**vars(schedule))
    model = nn.Linear(3, 2)
    x, y = torch.randn(10, 3), torch.zeros(10, dtype=torch.int64)
    features = handful.Features.from_array(x)
    steps = math.ceil(10 / 4)
    train(model, lambda: shuffled(features, y, 4, seeded(0), keep_last=True), watched, steps)
    expected = [0.1 * (1 + math.cos(math.pi * i / 6)) / 2 for i in range(6)]
    assert rates == pytest.approx(expected)
    assert isinstance(schedule.build_optimizer(list(model.parameters())), torch.optim.AdamW)


# -- Meta-Adapter ------------------------------------------------------------------------------------


@pytest.fixture
def refiner() -> Refiner:
    return Refiner(16).reset(seeded(0)).requires_grad_(False)


@pytest.mark.parametrize(("width", "count"), [(1024, 2_098_177), (512, 524_801)])
def test_a_refiner_has_the_published_parameters(width: int, count: int):
    assert parameters(Refiner(width)) == count


def test_a_refiner_is_its_formula(refiner: Refiner):
    features, labels, text = toy()
    found = handful.refine(text, features, refiner, torch.as_tensor(labels))
    q_proj, k_proj = refiner.q_proj.weight, refiner.k_proj.weight
    for c in range(3):
        own = F.normalize(features[torch.as_tensor(labels) == c], dim=-1)
        keys = torch.cat([text[c][None], own])
        a = ((text[c] @ q_proj.T) @ (keys @ k_proj.T).T / 4).softmax(0)  # sqrt(16)
        gate = (text[c] @ refiner.alpha_proj.weight[0] + refiner.alpha_proj.bias[0]).sigmoid()
        torch.testing.assert_close(found[c], F.normalize(text[c] + gate * (a @ keys), dim=0))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))


def test_shots_in_any_order_and_classes_on_their_own(refiner: Refiner):
    features, labels, text = toy()
    rows = torch.as_tensor(labels)
    plain = handful.refine(text, features, refiner, rows)
    order = torch.randperm(12, generator=seeded(1))
    torch.testing.assert_close(handful.refine(text, features[order], refiner, rows[order]), plain)
    changed = features.clone()
    changed[rows == 2] += 1
    other = handful.refine(text, changed, refiner, rows)
    torch.testing.assert_close(other[:2], plain[:2])
    assert not torch.allclose(other[2], plain[2], atol=1e-3)


def test_a_closed_gate_or_its_own_text_changes_nothing(refiner: Refiner):
    features, labels, text = toy()
    with torch.no_grad():
        refiner.alpha_proj.bias.fill_(-1e4)
    rows = torch.as_tensor(labels)
    torch.testing.assert_close(handful.refine(text, features, refiner, rows), text)
    with torch.no_grad():
        refiner.alpha_proj.bias.fill_(1.0)
    torch.testing.assert_close(handful.refine(text, text[:, None].expand(3, 5, 16), refiner), text)


def test_no_shots_and_unequal_shots(refiner: Refiner):
    features, labels, text = toy()
    torch.testing.assert_close(handful.refine(text, torch.zeros(3, 0, 16), refiner), text)
    none = torch.zeros(0, dtype=torch.int64)
    torch.testing.assert_close(handful.refine(text, torch.zeros(0, 16), refiner, none), text)
    rows = torch.as_tensor(labels)
    some = torch.arange(12)[(rows != 1) & ((rows != 2) | (torch.arange(12) == 8))]
    found = handful.refine(text, features[some], refiner, rows[some])
    whole = handful.refine(text, features, refiner, rows)
    torch.testing.assert_close(found[0], whole[0])
    torch.testing.assert_close(found[1], text[1])
    torch.testing.assert_close(found[2], handful.refine(text, features[8:9], refiner, rows[8:9])[2])
    with pytest.raises(handful.DataError, match="support of shape"):
        handful.refine(text, features[None], refiner)


def test_the_published_support_is_first_in_first_out(refiner: Refiner):
    text, support = torch.eye(2, 16), torch.randn(2, 3, 16)
    model = Published(refiner, text, support, 100.0)
    new = torch.randn(2, 16)
    model.enter(new, torch.tensor([1, 1]))
    torch.testing.assert_close(model.support[0], support[0])
    torch.testing.assert_close(
        model.support[1], torch.stack([*F.normalize(new.flip(0), dim=-1), support[1, 0]])
    )


@pytest.mark.parametrize("regime", ["episodic", "published"])
def test_a_network_is_trained_once_saved_alone_and_applied_to_others(
    regime: str, mini: handful.Backbone, digits: Path, tmp_path: Path
):
    images = handful.ImageSet.from_folder(digits / "train", verify=False)
    base = images[images.labels < 5]
    base = handful.ImageSet(base.items[::4], base.labels[::4], images.class_names[:5])

    def once() -> Refiner:
        return handful.meta_train(mini, base, regime=regime, shots=4, ways=4, epochs=2, views=0, lr=1e-3)

    network = once()
    torch.testing.assert_close(network.q_proj.weight, once().q_proj.weight)
    path = network.save(tmp_path / "network.safetensors")
    novel = images[images.labels >= 5]
    novel = handful.ImageSet(novel.items[::20], novel.labels[::20] - 5, images.class_names[5:])
    clf = handful.MetaAdapter(mini, refiner=path).fit(novel)
    assert clf.score(novel) > 0.3
    assert clf.info()["parameters"]["refiner"] == str(path)
    clf.save(tmp_path / "clf")
    path.unlink()  # the classifier holds all that it needs
    again = handful.load(tmp_path / "clf")
    np.testing.assert_array_equal(again.decision_function(novel), clf.decision_function(novel))
    again.add_images(novel.class_names[0], [novel.items[0]])


def test_a_network_belongs_to_its_backbone(
    mini: handful.Backbone, tiny: handful.Backbone, support: handful.ImageSet, tmp_path: Path
):
    with pytest.raises(handful.ParameterError, match="meta-train"):
        handful.MetaAdapter(tiny).fit(support)
    small = handful.ImageSet(support.items, support.labels, support.class_names)
    network = handful.meta_train(tiny, small, shots=2, queries=1, epochs=1, views=0)
    path = network.save(tmp_path / "tiny.safetensors")
    with pytest.raises(handful.FingerprintError, match="trained on"):
        handful.MetaAdapter(mini, refiner=path).fit(support)
    handful.MetaAdapter(tiny, refiner=path).fit(support)
    coop = handful.CoOp(mini, epochs=1, views=0, length=2).fit(support)
    context = coop.save_learned(tmp_path / "context.safetensors")
    with pytest.raises(handful.CheckpointError, match="meta-adapter"):
        handful.load_refiner(context)
    for bad in (tmp_path / "absent", tmp_path):
        with pytest.raises(handful.CheckpointError):
            handful.load_refiner(bad)


def test_it_refines_class_weights_of_another_method(mini: handful.Backbone, support: handful.ImageSet):
    coop = handful.CoOp(mini, epochs=1, views=0, length=2).fit(support)
    names = np.array(support.class_names)[support.labels]
    refined = handful.MetaAdapter(mini).fit(
        list(support.items), names, class_names=support.class_names, class_weights=coop.head_.class_weights
    )
    torch.testing.assert_close(refined.head_.class_weights, coop.head_.class_weights)
    assert refined.score(support) >= coop.score(support)


# -- linear probes -----------------------------------------------------------------------------------


def test_a_linear_probe_is_at_the_minimum():
    features, labels, text = toy(6, noise=2.0)
    clf = handful.LinearProbe().fit(features, labels, class_names=NAMES, class_weights=text)
    x, rows = F.normalize(features, dim=-1), torch.as_tensor(labels)
    anchors = class_confidence(100 * x @ text.T, rows)

    def loss(weights: torch.Tensor) -> torch.Tensor:
        constraint = (anchors * (weights - text).square().sum(1)).mean()
        return F.cross_entropy(100 * x @ weights.T, rows) + constraint

    found = clf.head_.class_weights
    assert float(loss(found)) <= float(loss(text))
    for seed in range(20):
        away = 0.02 * torch.randn(found.shape, generator=torch.Generator().manual_seed(seed))
        assert float(loss(found + away)) > float(loss(found))


def test_a_class_is_held_as_its_name_says_it(monkeypatch: pytest.MonkeyPatch):
    """The minimum that CLAP's constraint asks for, found by scipy from the article's formula (§4.2)."""
    monkeypatch.setattr("handful.methods.features.linear_probe.TOLERANCE", 1e-9)
    features, labels, text = toy(6, noise=2.0)
    text = text[[0, 2, 1]]  # the names of two classes say little
    clf = handful.LinearProbe().fit(features, labels, class_names=NAMES, class_weights=text)
    x, start = F.normalize(features, dim=-1).double().numpy(), text.double().numpy()
    own = np.eye(3)[labels]

    def softmax(weights: np.ndarray) -> np.ndarray:
        powers = np.exp(100 * x @ weights.T)
        return powers / powers.sum(1, keepdims=True)

    strength = (own * softmax(start)).sum(0) / own.sum(0)
    assert strength.max() > 2 * strength.min()

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(start.shape)
        away, p = weights - start, softmax(weights)
        value = -np.log((own * p).sum(1)).mean() + (strength * (away**2).sum(1)).mean()
        slope = 100 * (p - own).T @ x / len(x) + 2 * strength[:, None] * away / 3
        return value, slope.ravel()

    best = minimize(loss, start.ravel(), jac=True, method="BFGS", options={"gtol": 1e-6}).x
    np.testing.assert_allclose(clf.head_.class_weights, best.reshape(start.shape), atol=2e-3)


def test_confidence_is_the_mean_zero_shot_probability():
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
    found = class_confidence(logits, torch.tensor([0, 0, 1]))
    p = logits.softmax(1)
    torch.testing.assert_close(found, torch.tensor([float(p[0, 0] + p[1, 0]) / 2, float(p[2, 1]), 1.0]))


def test_a_strong_constraint_is_zero_shot_and_a_class_without_images_stays():
    features, labels, text = toy()
    keep = labels != 1
    given = {"class_names": NAMES, "class_weights": text}
    strong = handful.LinearProbe(strength=1e7).fit(features, labels, **given)
    torch.testing.assert_close(strong.head_.class_weights, text, atol=1e-3, rtol=0)
    clf = handful.LinearProbe().fit(features[keep], np.array(NAMES)[labels[keep]], **given)
    assert float((clf.head_.class_weights[1] - text[1]).norm()) < 0.5
    plain = handful.LinearProbe(strength=0).fit(features, labels, **given)
    assert plain.score(features, labels) == 1.0


def test_whitened_steps_are_the_same_weights():
    features, _, text = toy()
    x = F.normalize(features, dim=-1)
    model = MovedWeights(text, x, 100.0)
    torch.testing.assert_close(model(x), 100 * x @ text.T)
    values = torch.linalg.eigvalsh(model.whitening)
    assert float(values.min()) > 0


def test_a_loss_that_is_no_number_is_told():
    model = nn.Linear(2, 2)
    with pytest.raises(handful.TrainingError, match="evaluation 1"):
        descend(model, lambda: model.weight.sum() * torch.nan, 5, 1e-5)


def test_coops_linear_probe_to_the_letter(mini: handful.Backbone, digits: Path):
    whole = handful.ImageSet.from_folder(digits / "train", verify=False)
    test = handful.ImageSet.from_folder(digits / "test", verify=False)[np.arange(0, 400, 8)]
    val = whole[np.arange(0, len(whole), 3)]
    (draw,) = coop_probe_draws(whole, val, test, shots=[2], runs=[1])
    clf = fit_draw(handful.LogisticProbe(mini, selection="val"), draw)
    assert (clf.selection_, draw.shots, len(draw.support), len(draw.validation)) == ("val", 2, 20, 20)
    assert clf.score(draw.tests["test"]) > 0.5
    rows, some = coop_probe_draw(whole, val, 2, 1)
    x, seen, unseen = (handful.encode(mini, images) for images in (whole, val, test))
    same = handful.LogisticProbe(mini, selection="val").fit(
        x[rows], whole.labels[rows], class_names=whole.class_names, validation=(seen[some], val.labels[some])
    )
    assert clf.selected_ == same.selected_
    assert clf.score(test) == same.score(unseen, test.labels)
    with pytest.raises(handful.DataError, match="of each"):
        next(coop_probe_draws(whole, val, test, shots=[10_000], runs=[1]))


# -- classes that come and go ------------------------------------------------------------------------

ONLINE = [
    handful.ZeroShot,
    handful.TipAdapter,
    lambda backbone: handful.TipAdapter(backbone, selection="support"),
    lambda backbone: handful.MetaAdapter(backbone, views=2),
]


def same(left: np.ndarray, right: np.ndarray) -> None:
    np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-4)


def listed(support: handful.ImageSet) -> tuple[list[str], list[str]]:
    return [str(item) for item in support.items], [support.class_names[label] for label in support.labels]


@pytest.mark.parametrize("make", ONLINE)
def test_what_comes_and_goes_equals_a_fresh_fit(
    make, mini: handful.Backbone, support: handful.ImageSet, held_out: handful.ImageSet, tmp_path: Path
):
    items, names = listed(support)
    first, last = support.class_names[0], support.class_names[-1]
    early = [row for row, name in enumerate(names) if name != last]
    held = [row for row, name in enumerate(names) if name == first][-1]
    start = [row for row in early if row != held]
    added = [row for row, name in enumerate(names) if name == last]
    order = [*support.class_names[:-1], last]
    clf = make(mini).fit([items[r] for r in start], [names[r] for r in start], class_names=order[:-1])
    clf.save(tmp_path / "before")
    clf = handful.load(tmp_path / "before")
    assert clf.add_class(last, [items[r] for r in added]) is clf
    clf.add_images(first, items[held])
    rows = [*start, *added, held]
    fresh = make(mini).fit([items[r] for r in rows], [names[r] for r in rows], class_names=order)
    np.testing.assert_allclose(
        clf.decision_function(held_out), fresh.decision_function(held_out), rtol=1e-5, atol=1e-4
    )
    left, right = clf.info(), fresh.info()
    for facts in (left, right):
        facts.pop("saved"), facts.pop("notes"), facts["head"].pop("scale")
        for name in ("alpha", "beta"):
            facts["head"].pop(name, None), facts["selected"].pop(name, None)
    assert left == right
    clf.remove_class(first)
    stay = [row for row in rows if names[row] != first]
    fresh = make(mini).fit([items[r] for r in stay], [names[r] for r in stay], class_names=order[1:])
    np.testing.assert_allclose(
        clf.decision_function(held_out), fresh.decision_function(held_out), rtol=1e-5, atol=1e-4
    )
    clf.save(tmp_path / "after")
    again = handful.load(tmp_path / "after")
    np.testing.assert_array_equal(again.predict(held_out), clf.predict(held_out))


def test_changes_that_are_refused_leave_the_classifier_whole(
    mini: handful.Backbone, support: handful.ImageSet
):
    clf = handful.TipAdapter(mini).fit(support)
    before = clf.decision_function(support)
    bad = [
        lambda: clf.add_class(support.class_names[0].upper(), support.items[:1]),
        lambda: clf.add_class("", support.items[:1]),
        lambda: clf.add_class("new", "absent.png"),
        lambda: clf.add_class("new", np.ones((1, 3), np.float32)),
        lambda: clf.add_class("new", class_weight=np.ones(3)),
        lambda: clf.add_images("unknown", support.items[:1]),
        lambda: clf.remove_class("unknown"),
    ]
    for change in bad:
        with pytest.raises((handful.DataError, handful.ParameterError)):
            change()
    np.testing.assert_array_equal(clf.decision_function(support), before)
    trained = fit(handful.TipAdapterF(epochs=1, views=0))
    with pytest.raises(handful.ParameterError, match="train again"):
        trained.add_images("cat", np.ones((1, 16), np.float32))
    one = handful.ZeroShot(mini).fit(class_names=["only"])
    with pytest.raises(handful.DataError, match="only class"):
        one.remove_class("only")


def test_given_class_weights_need_one_for_a_new_class():
    clf = fit(handful.TipAdapter())
    with pytest.raises(handful.ParameterError, match="class_weight="):
        clf.add_class("owl", np.ones((1, 16), np.float32))
    clf.add_class("owl", np.ones((1, 16), np.float32), class_weight=np.ones(16))
    assert clf.predict(np.ones((1, 16), np.float32)).tolist() == ["owl"]
    assert clf.shots_ == (4, 4, 4, 1)


def test_numbers_that_validation_chose_stay_with_a_note():
    seen, truth, _ = toy(8, seed=4)
    clf = fit(handful.TipAdapter(selection="val"), validation=(seen, truth))
    alpha = clf.selected_["alpha"]
    clf.add_images("cat", toy()[0][:1])
    assert clf.selected_["alpha"] == alpha
    assert any("before" in note for note in clf.notes_)


# -- why ---------------------------------------------------------------------------------------------


def test_a_cache_names_the_images_that_decided(mini: handful.Backbone, support: handful.ImageSet):
    clf = handful.TipAdapter(mini, beta=20.0).fit(support)
    why = clf.explain(support.items[5], top=3)
    assert why.support[0].image == str(support.items[5])
    assert why.support[0].class_name == support.class_names[support.labels[5]]
    shares = [evidence.share for evidence in clf.explain(support.items[5], top=1000).support]
    assert sum(shares) == pytest.approx(1)
    assert shares == sorted(shares, reverse=True)
    logits = clf.decision_function(support.items[5])[0]
    first, second = np.sort(logits)[::-1][:2]
    assert why.predicted == clf.predict(support.items[5])[0]
    assert why.margins[why.predicted] == pytest.approx(first - second, abs=1e-4)
    assert sum(margin > 0 for margin in why.margins.values()) == 1
    with pytest.raises(handful.DataError, match="one"):
        clf.explain(list(support.items[:2]))


@pytest.mark.parametrize("make", [handful.MetaAdapter, handful.ZeroShot, handful.LinearProbe])
def test_every_method_gives_margins(make, mini: handful.Backbone, support: handful.ImageSet):
    why = make(mini).fit(support).explain(support.items[0])
    assert next(iter(why.margins)) == why.predicted
    assert len(why.margins) == 10
    assert len(why.support) == (5 if make is handful.MetaAdapter else 0)


def test_shares_of_a_refined_classifier_add_up(mini: handful.Backbone, support: handful.ImageSet):
    """The class weight's own part and the images' parts make up its cosine, before normalising."""
    clf = handful.MetaAdapter(mini).fit(support)
    head, x = clf.head_, handful.encode(mini, support.items[:1]).directions()[0]
    said = head.evidence(x)
    sums = torch.zeros(10).index_add_(0, head.labels, said)
    assert float(sums.abs().max()) < 1


def test_the_commands(call, few_digits: Path, tmp_path: Path):
    network = tmp_path / "network.safetensors"
    code, text, _ = call("meta-train", few_digits / "train", "--epochs", 1, "--shots", 2, "--out", network)
    assert code == 0, text
    assert network.exists()
    out = tmp_path / "model"
    words = ["fit", few_digits / "train", "--shots", 2, "--out", out, "--method", "meta-adapter"]
    assert call(*words, "-p", f"refiner={network}")[0] == 0
    image = next((few_digits / "test" / "eight").iterdir())
    code, text, _ = call("explain", out, image, "--top", 2)
    assert code == 0
    assert text.count("share") == 2
    assert call("explain", out)[0] == 1
    code, _, err = call("fit", few_digits / "train", "--shots", 2, "-p", "selection=val", "--out", out)
    assert (code, "validation=" in err) == (1, True)
    code, _, _ = call(
        "fit", few_digits / "train", "--shots", 2, "-p", "selection=val", "--validation", few_digits / "test",
        "--out", out,
    )  # fmt: skip
    assert code == 0


# -- a cache without end -----------------------------------------------------------------------------


def test_a_large_cache_is_read_a_chunk_at_a_time(monkeypatch: pytest.MonkeyPatch):
    clf = fit(handful.TipAdapter(), shots=40)
    x = toy(5, seed=3)[0]
    whole = clf.decision_function(x)
    seen: list[int] = []
    plain = torch.exp
    monkeypatch.setattr("handful.methods.features.tip_adapter.CHUNK", 7)
    monkeypatch.setattr(torch, "exp", lambda values: (seen.append(values.shape[1]), plain(values))[1])
    np.testing.assert_allclose(clf.decision_function(x), whole, atol=1e-5)
    assert max(seen) == 7
    assert sum(seen) == 120
    assert isinstance(replace(clf.head_, alpha=0.0), CacheHead)


# -- what a hostile reading found --------------------------------------------------------------------


def test_online_changes_use_the_parameters_of_the_fit(mini: handful.Backbone, support: handful.ImageSet):
    items, names = listed(support)
    clf = handful.TipAdapter(mini, views=2).fit(items[:-1], names[:-1], class_names=support.class_names)
    clf.set_params(views=0, alpha=9.0).add_images(names[-1], items[-1])
    fresh = handful.TipAdapter(mini, views=2).fit(items, names, class_names=support.class_names)
    same(clf.decision_function(support), fresh.decision_function(support))
    assert clf.get_params()["views"] == 0  # what was set since stays set


def test_an_image_set_of_other_classes_is_not_added(mini: handful.Backbone, support: handful.ImageSet):
    clf = handful.TipAdapter(mini).fit(support)
    with pytest.raises(handful.DataError, match="one class at a time"):
        clf.add_images(support.class_names[0], support)
    clf.add_images(support.class_names[0], support[support.labels == 0])
    assert clf.shots_[0] == 8


def test_the_last_images_may_leave_and_names_stay_apart():
    features, labels, text = toy()
    given = {"class_names": NAMES, "class_weights": text}
    clf = handful.TipAdapter(selection="support").fit(features[:4], ["cat"] * 4, **given)
    assert clf.remove_class("cat").selection_ == "fixed"
    clf = handful.TipAdapter().fit(features, labels, **given)
    clf.remove_class("cat").add_images("dog", features[:2])
    assert len(set(clf.support_)) == len(clf.support_) == 10


def test_no_images_at_all_for_meta_adapter(mini: handful.Backbone):
    clf = handful.MetaAdapter(mini).fit(class_names=["cat", "dog"])
    zero = handful.ZeroShot(mini).fit(class_names=["cat", "dog"])
    x = np.random.default_rng(0).normal(size=(4, 256)).astype(np.float32)
    np.testing.assert_allclose(clf.decision_function(x), zero.decision_function(x), atol=1e-4)


def test_shares_are_parts_of_the_cosine(mini: handful.Backbone, support: handful.ImageSet):
    clf = handful.MetaAdapter(mini).fit(support)
    head, x = clf.head_, handful.encode(mini, support.items[:1]).directions()[0]
    said = torch.zeros(10).index_add_(0, head.labels, head.evidence(x))
    text = head.class_weights
    keys = torch.cat([text[:, None], torch.stack([head.keys[head.labels == c] for c in range(10)])], 1)
    attention, gate = head.refiner.attention(text, keys, None), head.refiner.gate(text)[:, 0]
    length = (text + gate[:, None] * (attention[:, None] @ keys)[:, 0]).norm(dim=1)
    own = (1 + gate * attention[:, 0]) * (text @ x) / length
    torch.testing.assert_close(said + own, head.refined @ x)


def test_losses_are_those_of_the_model_that_was_kept():
    seen, truth, _ = toy(8, seed=4)
    clf = fit(handful.ClipAdapter(selection="val", epochs=5, views=0), validation=(seen, truth))
    ratio = clf.selected_["trained_at"]
    alone = fit(handful.ClipAdapter(selection="fixed", alpha=ratio, epochs=5, views=0))
    assert clf.losses_ == alone.losses_


def test_fresh_crops_for_those_that_train(mini: handful.Backbone, support: handful.ImageSet):
    few = support[np.arange(0, len(support), 2)]
    for make in (handful.ClipAdapter, handful.TipAdapterF):
        clf = make(mini, views="online", epochs=1).fit(few)
        assert clf.score(few) > 0.2


def test_a_network_may_be_given_as_it_is(mini: handful.Backbone, support: handful.ImageSet, tmp_path: Path):
    network = handful.meta_train(mini, support, shots=np.int64(2), queries=1, epochs=1, views=0)
    network.save(tmp_path / "network")
    clf = handful.MetaAdapter(mini, refiner=network).fit(support)
    clf.save(tmp_path / "clf")
    again = handful.load(tmp_path / "clf")
    np.testing.assert_array_equal(again.predict(support), clf.predict(support))
    other = handful.Features.from_array(np.ones((2, 256), np.float32), "another")
    with pytest.raises(handful.FingerprintError):
        handful.MetaAdapter(refiner=network).fit(other, AB, class_weights=np.ones((2, 256), np.float32))


AB = ["a", "b"]


@pytest.mark.parametrize(
    "change",
    [
        lambda w, f, y, r: (w[0], f, r, y),
        lambda w, f, y, r: (w[:, :3], f, r, y),
        lambda w, f, y, r: (w, f, r, y + 1),
        lambda w, f, y, r: (w, f, r, y - 1),
        lambda w, f, y, r: (w, f, r, y[:4]),
        lambda w, f, y, r: (w, f, r, y + 0.5),
        lambda w, f, y, r: (w, f[:, :3], r, y),
        lambda w, f, y, r: (w, f, r, None),
    ],
)
def test_refine_checks_what_it_is_given(change, refiner: Refiner):
    features, labels, text = toy()
    found = handful.refine(text.numpy(), features.double().numpy(), refiner, labels.tolist())
    torch.testing.assert_close(found, handful.refine(text, features, refiner, torch.as_tensor(labels)))
    with pytest.raises(handful.DataError):
        handful.refine(*change(text, features, labels, refiner))


@pytest.mark.parametrize(
    "act",
    [
        lambda: fit(handful.TipAdapter(ranges=[1])),
        lambda: fit(handful.TipAdapter(alpha=1e40)),
        lambda: fit(handful.MetaAdapter(refiner=5)),
        lambda: fit(handful.ClipAdapter(side=["image"])),
        lambda: fit(handful.ClipAdapter(selection="val", learn_ratio=True)),
        lambda: fit(handful.TipAdapter(selection="val"), validation=(toy()[0][:0], [])),
        lambda: fit(handful.TipAdapter(selection="val"), validation=(toy()[0][:1], 0)),
        lambda: fit(handful.TipAdapter(selection="val"), validation=(toy()[0][:2], [["a"], ["b", "c"]])),
        lambda: fit(handful.TipAdapter()).add_class("owl", class_weight="abc"),
        lambda: fit(handful.TipAdapter()).add_class("owl", class_weight=["a"]),
        lambda: handful.meta_train("mini", ["a.png"]),
        lambda: handful.load_refiner(None),
    ],
)  # fmt: skip
def test_bad_parameters_end_in_one_sentence(act):
    with pytest.raises((handful.ParameterError, handful.DataError)):
        act()


@pytest.mark.parametrize(
    ("key", "value"), [("shots", ["a", "b", "c"]), ("shots", [1]), ("selection", "zz"), ("side", ["image"])]
)
def test_damaged_facts(key: str, value: object, tmp_path: Path):
    import json

    clf = fit(handful.ClipAdapter(selection="fixed", epochs=1, views=0))
    clf.save(tmp_path / "clf")
    facts = json.loads((tmp_path / "clf" / "head.json").read_text())
    (facts["parameters"] if key == "side" else facts)[key] = value
    (tmp_path / "clf" / "head.json").write_text(json.dumps(facts))
    with pytest.raises(handful.CheckpointError):
        handful.load(tmp_path / "clf")


def test_coops_probe_draws_are_numpys_global_ones(support: handful.ImageSet):
    state = np.random.get_state()  # noqa: NPY002
    try:
        np.random.seed(3)  # noqa: NPY002
        train = [np.random.choice(np.flatnonzero(support.labels == c), 3, replace=False) for c in range(10)]  # noqa: NPY002
        val = [np.random.choice(np.flatnonzero(support.labels == c), 3, replace=False) for c in range(10)]  # noqa: NPY002
    finally:
        np.random.set_state(state)  # noqa: NPY002
    rows, some = coop_probe_draw(support, support, 3, 3)
    assert rows.tolist() == np.concatenate(train).tolist()
    assert some.tolist() == np.concatenate(val).tolist()


def test_coops_probe_wants_one_order_of_classes(support: handful.ImageSet):
    turned = handful.ImageSet(support.items, 9 - support.labels, support.class_names[::-1])
    for parts in ((support, turned, support), (support, support, turned)):
        with pytest.raises(handful.DataError, match="in its order"):
            next(coop_probe_draws(*parts, shots=[1], runs=[1]))
    with pytest.raises(handful.DataError, match="shots"):
        next(coop_probe_draws(support, support, support, shots=[]))


def test_other_names_for_zero_shot_forget_whose_images_they_were(
    mini: handful.Backbone, support: handful.ImageSet, tmp_path: Path
):
    clf = handful.ZeroShot(mini).fit(support).with_classes(["cat", "dog"])
    clf.add_class("owl").save(tmp_path / "clf")
    assert handful.load(tmp_path / "clf").classes_.tolist() == ["cat", "dog", "owl"]

"""Tip-Adapter-F, the linear probes, and a cache without end."""

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
from toys import NAMES, fit, parameters, toy

import handful
from handful.cache import CacheHead
from handful.convex.probe import class_confidence
from handful.methods.features.tip_adapter.trained import TrainedCache
from handful.protocols import coop_probe_draw, coop_probe_draws
from handful.protocols import fit as fit_draw
from handful.schedule import Schedule, seeded, tip_schedule
from handful.train import descend, shuffled, train

# -- Tip-Adapter-F --------------------------------------------------------------------------------


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


# -- linear probes --------------------------------------------------------------------------------


def test_a_linear_probe_is_at_the_minimum():
    features, labels, text = toy(6, noise=2.0)
    clf = handful.LinearProbe(strength=1.0, tolerance=1e-4)
    clf.fit(features, labels, class_names=NAMES, class_weights=text)
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


def test_a_class_is_held_as_its_name_says_it():
    """The minimum that CLAP's constraint asks for, found by scipy from the article's formula (§4.2)."""
    features, labels, text = toy(6, noise=2.0)
    text = text[[0, 2, 1]]  # the names of two classes say little
    clf = handful.LinearProbe(strength=1.0, tolerance=1e-9)
    clf.fit(features, labels, class_names=NAMES, class_weights=text)
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


# -- a cache without end --------------------------------------------------------------------------


def test_a_large_cache_is_read_a_chunk_at_a_time(monkeypatch: pytest.MonkeyPatch):
    clf = fit(handful.TipAdapter(), shots=40)
    x = toy(5, seed=3)[0]
    whole = clf.decision_function(x)
    seen: list[int] = []
    plain = torch.exp
    monkeypatch.setattr("handful.cache.CHUNK", 7)
    monkeypatch.setattr(torch, "exp", lambda values: (seen.append(values.shape[1]), plain(values))[1])
    np.testing.assert_allclose(clf.decision_function(x), whole, atol=1e-5)
    assert max(seen) == 7
    assert sum(seen) == 120
    assert isinstance(replace(clf.head_, alpha=0.0), CacheHead)

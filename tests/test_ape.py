"""APE and APE-T: the closed form of the similarity, what they are at their ends, unequal classes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from toys import toy

import handful
from handful.estimator import Task
from handful.methods.features.ape.channels import channel_similarity, choose_channels, divergence

NAMES = ["cat", "dog", "red panda"]


def fitted(method: str, counts: tuple[int, ...] = (4, 4, 4), **parameters: Any) -> handful.FewShotClassifier:
    features, labels, text = toy(max(counts), noise=0.5)
    rows = np.concatenate([np.flatnonzero(labels == row)[:count] for row, count in enumerate(counts)])
    names = np.array(NAMES)[labels[rows]]
    clf = handful.METHODS[method](**parameters)
    return clf.fit(features[rows], names, class_names=NAMES, class_weights=text)


@pytest.mark.parametrize("counts", [(3, 3, 3), (1, 1, 1), (5, 2, 0)])
@pytest.mark.parametrize("balance", [True, False])
def test_the_similarity_is_the_published_double_loop(counts: tuple[int, ...], balance: bool):
    generator = torch.Generator().manual_seed(0)
    text = F.normalize(torch.randn(3, 8, generator=generator), dim=-1)
    labels = torch.arange(3).repeat_interleave(torch.tensor(counts))
    keys = F.normalize(torch.randn(len(labels), 8, generator=generator), dim=-1)
    own = [torch.cat([text[row : row + 1], keys[labels == row]]) for row in range(3)]
    pairs = [
        (one[:, None] * other).flatten(0, 1) for one, other in itertools.permutations(own, 2)
    ]  # [m n, E] of each ordered pair of classes
    expected = torch.stack([pair.mean(0) for pair in pairs]).mean(0) if balance else torch.cat(pairs).mean(0)
    torch.testing.assert_close(channel_similarity(text, keys, labels, balance), expected)


def test_channels_weigh_variance_against_similarity():
    generator = torch.Generator().manual_seed(1)
    text = F.normalize(torch.randn(5, 12, generator=generator), dim=-1)
    similarity = channel_similarity(text, text[:0], torch.zeros(0, dtype=torch.int64))
    assert set(choose_channels(text, similarity, 4, 1.0).tolist()) == set(
        text.var(0).topk(4).indices.tolist()
    )
    low = (-similarity).topk(4).indices.tolist()
    assert set(choose_channels(text, similarity, 4, 0.0).tolist()) == set(low)
    one = choose_channels(text[:1], channel_similarity(text[:1], text[:0], torch.zeros(0).long()), 3, 0.5)
    assert len(set(one.tolist())) == 3  # of one class there is nothing to tell apart


def test_the_divergence_is_the_published_sum():
    generator = torch.Generator().manual_seed(2)
    cosines, labels = torch.rand(6, 4, generator=generator), torch.tensor([0, 1, 2, 3, 0, 1])
    y, p = F.one_hot(labels, 4).float(), cosines.softmax(1)
    expected = (y * ((y + 1e-6) / (p + 1e-6)).log2()).sum(1)
    torch.testing.assert_close(divergence(cosines, labels), expected)


def test_with_all_channels_and_no_gamma_it_is_tip_adapter():
    features, _, _ = toy(6, seed=5)
    ape = fitted("ape", channels=1.0, gamma=0.0, alpha=3.0, beta=2.0)
    tip = fitted("tip-adapter", alpha=3.0, beta=2.0)
    np.testing.assert_allclose(ape.logits(features), tip.logits(features), atol=1e-4)


@pytest.mark.parametrize("method", ["ape", "ape-t"])
def test_without_the_cache_or_training_it_is_zero_shot(method: str):
    features, _, _ = toy(6, seed=5)
    more = {} if method == "ape" else {"epochs": 1, "lr": 1e-12, "views": 0}
    clf, zero = fitted(method, alpha=0.0, **more), fitted("zero-shot")
    np.testing.assert_allclose(clf.logits(features), zero.logits(features), atol=1e-3)


def test_ape_t_starts_as_tip_adapter():
    features, labels, text = toy(4)
    task = Task(handful.Features.from_array(features), torch.from_numpy(labels), tuple(NAMES), text, 100.0)
    model = handful.APET(alpha=2.0, beta=1.5, channels=5).learner(task)
    tip = handful.TipAdapter(alpha=2.0, beta=1.5).cache(task)
    torch.testing.assert_close(model(features), tip.read(features), atol=1e-4, rtol=1e-5)
    assert sum(p.numel() for p in model.parameters()) == 3 * 5 + len(labels)


@pytest.mark.parametrize("method", ["ape", "ape-t"])
def test_alpha_is_in_units_of_the_scale(method: str):
    """At 15 what is at 100, where text and cache are as strong beside each other."""
    features, labels, text = toy(4)
    images, rows = handful.Features.from_array(features), torch.from_numpy(labels)
    heads = [
        handful.METHODS[method](**({} if method == "ape" else {"epochs": 1, "lr": 1e-12}))
        .learn(Task(images, rows, tuple(NAMES), text, scale))
        .head
        for scale in (100.0, 15.0)
    ]
    torch.testing.assert_close(heads[0].read(features) * 0.15, heads[1].read(features), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("method", ["ape", "ape-t"])
@pytest.mark.parametrize("counts", [(5, 2, 0), (1, 1, 1), (0, 0, 2)])
@pytest.mark.parametrize("selection", ["fixed", "support"])
def test_unequal_and_missing_classes(method: str, counts: tuple[int, ...], selection: str, tmp_path: Path):
    features, _, _ = toy(6, seed=5)
    more = {} if method == "ape" else {"epochs": 2, "views": 0}
    clf = fitted(method, counts, selection=selection, **more)
    logits = clf.logits(features)
    assert np.isfinite(logits).all()
    again = handful.load(clf.save(tmp_path / "clf"))
    np.testing.assert_array_equal(again.logits(features), logits)
    alone = min(count for count in counts if count) == 1
    assert clf.selection_ == ("fixed" if alone else selection)


def test_two_views_and_one_class():
    generator = torch.Generator().manual_seed(3)
    views = handful.Features(torch.randn(4, 2, 16, generator=generator))
    text = torch.randn(1, 16, generator=generator)
    for clf in (handful.APE(), handful.APET(epochs=1)):
        assert clf.fit(views, ["cat"] * 4, class_weights=text).predict(views).tolist() == ["cat"] * 4


@pytest.mark.parametrize(
    "bad",
    [{"channels": 0}, {"channels": 1.5}, {"channels": 17}, {"variance": 2}, {"gamma": 9}, {"alpha": -1},
     {"beta": 0}, {"channels": "all"}, {"selection": "best"}],
)  # fmt: skip
def test_ape_refuses(bad: dict[str, Any]):
    with pytest.raises(handful.ParameterError, match=next(iter(bad))):
        fitted("ape", **bad)


def test_ape_changes_with_no_training_as_a_fresh_fit():
    features, labels, text = toy(4)
    names = np.array(NAMES)[labels]
    clf = handful.APE().fit(features[:8], names[:8], class_weights=text[:2])
    clf.add_class("red panda", features[8:], class_weight=text[2])
    fresh = handful.APE().fit(features, names, class_weights=text)
    np.testing.assert_allclose(clf.logits(features), fresh.logits(features), atol=1e-4)
    assert replace(clf.head_).channels.tolist() == fresh.head_.channels.tolist()

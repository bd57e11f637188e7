"""TDA: a stream from the caches of the fit, in order; seeds that stay; and nothing that predict changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from toys import toy

import handful
from handful.estimator.confidence import classify
from handful.methods.features.tda.stream import Memory

NAMES = ["cat", "dog", "red panda"]


def by_names(text: torch.Tensor, **parameters: Any) -> handful.TDA:
    return handful.TDA(**parameters).fit(class_names=NAMES, class_weights=text)


def published(x: np.ndarray, text: np.ndarray, **p: Any) -> np.ndarray:
    """The published loop, in NumPy, at scale 100: one unit feature after the other."""
    positive: dict[int, list[Any]] = {}
    negative: dict[int, list[Any]] = {}
    found = []

    def update(cache: dict[int, list[Any]], label: int, item: tuple[Any, ...], most: int) -> None:
        items = cache.setdefault(label, [])
        if len(items) < most:
            items.append(item)
        elif items and item[1] < items[-1][1]:
            items[-1] = item
        items.sort(key=lambda one: one[1])

    for query in x / np.linalg.norm(x, axis=1, keepdims=True):
        logits = 100 * text @ query
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        entropy = -(probabilities * np.log(probabilities + 1e-300)).sum()
        label = int(logits.argmax())
        update(positive, label, (query, entropy), p["capacity"])
        if p["low"] < entropy / np.log2(len(text)) < p["high"]:
            update(negative, label, (query, entropy, probabilities), p["negative_capacity"])
        for row, items in positive.items():
            logits[row] += sum(p["alpha"] * np.exp(-p["beta"] * (1 - query @ key)) for key, _ in items)
        for items in negative.values():
            for key, _, seen in items:
                mask = (seen > p["mask"][0]) & (seen < p["mask"][1])
                logits = logits - p["negative_alpha"] * np.exp(-(1 - query @ key)) * mask
        found.append(logits)
    return np.array(found)


def test_it_is_the_published_loop():
    generator = torch.Generator().manual_seed(0)
    unit = F.normalize(1 + 0.05 * torch.randn(3, 16, generator=generator), dim=-1)  # many doubts
    x = 1 + 0.5 * torch.randn(90, 16, generator=generator)
    p = {"alpha": 2.0, "beta": 5.0, "capacity": 3, "negative_alpha": 0.5, "negative_capacity": 2}
    clf = by_names(unit, **p, negative_entropy=(0.05, 0.68), mask=(0.1, 0.9))
    expected = published(x.numpy(), unit.numpy(), **p, low=0.05, high=0.68, mask=(0.1, 0.9))
    np.testing.assert_allclose(clf.logits(x), expected, atol=1e-3)
    clf.stream_logits(x)
    assert len(clf.head_.negative.keys) == 6 and clf.head_.positive.labels.bincount().max() == 3


def test_predict_leaves_the_classifier_as_it_is_and_a_stream_goes_on(tmp_path: Path):
    features, _, text = toy(8)
    clf = by_names(text)
    whole = clf.logits(features)
    np.testing.assert_array_equal(clf.logits(features), whole)
    np.testing.assert_array_equal(clf.predict(features), np.array(sorted(NAMES))[whole.argmax(1)])
    halves = [clf.stream_logits(features[:10])]
    clf = handful.load(clf.save(tmp_path / "clf"))  # the caches are part of the file
    halves.append(clf.stream_logits(features[10:]))
    np.testing.assert_allclose(np.concatenate(halves), whole, atol=1e-4)
    assert not np.allclose(clf.logits(features), whole)


def test_a_stream_does_not_depend_on_how_it_is_cut_into_parts(monkeypatch: pytest.MonkeyPatch):
    features, _, text = toy(8)
    whole = by_names(text).predict_proba(features)
    monkeypatch.setattr("handful.estimator.method.PREDICT_BATCH", 5)
    np.testing.assert_allclose(by_names(text).predict_proba(features), whole, atol=1e-5)


def test_the_order_of_a_stream_counts():
    features, _, text = toy(8)
    clf, turned = by_names(text), torch.arange(len(features)).flip(0)
    assert not np.allclose(clf.logits(features[turned])[turned.numpy()], clf.logits(features))


def test_empty_caches_are_zero_shot_and_seeds_are_tip_adapter():
    """As a server reads them: each image alone, from the caches as they are."""
    features, labels, text = toy(4)
    names = np.array(NAMES)[labels]
    zero = handful.ZeroShot().fit(class_names=NAMES, class_weights=text)
    alone = by_names(text).head_.read(features)
    np.testing.assert_allclose(alone.numpy(), zero.logits(features), atol=1e-4)
    off = by_names(text, capacity=0, negative_capacity=0)
    np.testing.assert_allclose(off.logits(features), zero.logits(features), atol=1e-4)
    seeded = handful.TDA(alpha=3.0, beta=2.0).fit(features, names, class_weights=text)
    tip = handful.TipAdapter(alpha=3.0, beta=2.0).fit(features, names, class_weights=text)
    np.testing.assert_allclose(seeded.head_.read(features).numpy(), tip.logits(features), atol=1e-4)
    without = handful.TDA(alpha=3.0, beta=2.0, seeded=False).fit(features, names, class_weights=text)
    np.testing.assert_allclose(without.head_.read(features).numpy(), zero.logits(features), atol=1e-4)
    seeded.stream_logits(features)
    assert len(seeded.head_.keys) == len(features) and len(seeded.head_.positive.keys) > 6
    served = classify(seeded.head_, None, features[:1]).probabilities
    both = classify(seeded.head_, None, features[:2]).probabilities
    torch.testing.assert_close(both[:1], served)


def test_of_the_views_of_an_image_the_confident_ones_speak():
    generator = torch.Generator().manual_seed(0)
    text = F.normalize(torch.randn(3, 16, generator=generator), dim=-1)
    views = torch.randn(2, 20, 16, generator=generator)
    views[:, 3] = text[1] * 4  # sure
    clf = by_names(text, kept_views=0.05)
    assert clf.predict(handful.Features(views)).tolist() == ["dog", "dog"]
    assert clf.logits(handful.Features(views[:, :2])).shape == (2, 3)  # fewer than 1 / share: one speaks
    assert clf.transform(handful.Features(views)).shape == (2, 16)
    assert clf.explain(handful.Features(views[:1])).predicted == "dog"


def test_a_full_class_takes_only_what_is_surer():
    memory = Memory.empty(2, 0)
    for entropy in (0.5, 0.3, 0.5, 0.1, 0.4):
        key = torch.tensor([entropy, 0.0])
        memory.insert(2, key, torch.tensor(1), torch.tensor(entropy), torch.zeros(0))
    assert memory.copy().entropy.tolist() == pytest.approx([0.1, 0.3])
    assert memory.copy().keys[:, 0].tolist() == pytest.approx([0.1, 0.3])


@pytest.mark.parametrize(
    "bad",
    [{"capacity": -1}, {"alpha": -1}, {"beta": 0}, {"kept_views": 2}, {"seeded": "yes"}, {"mask": (0.5, 0.1)},
     {"negative_entropy": 3}, {"negative_capacity": 1.5}],
)  # fmt: skip
def test_tda_refuses(bad: dict[str, Any]):
    _, _, text = toy()
    with pytest.raises(handful.ParameterError, match=next(iter(bad))):
        by_names(text, **bad)


def test_one_class_and_one_image():
    clf = handful.TDA().fit(class_names=["cat"], class_weights=np.ones((1, 4)))
    assert clf.predict(np.ones((3, 4), np.float32)).tolist() == ["cat"] * 3

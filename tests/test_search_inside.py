"""Searches inside the support set: the likeliest of what is right about as often as the best."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from toys import toy

import handful
from handful.search import likely_pair


def test_where_all_are_right_the_search_inside_stays_near_the_alpha_given():
    """An accuracy alone took the middle of whatever range was left, up to 47."""
    features, labels, text = toy(8, noise=0.05)
    clf = handful.TipAdapter(selection="support", alpha=1.0)
    clf.fit(features, labels, class_names=list("abc"), class_weights=text)
    assert clf.selection_ == "support" and clf.selected_["alpha"] < 5


def test_the_likeliest_pair_is_right_about_as_often_as_the_best():
    generator = torch.Generator().manual_seed(0)
    base, extra = torch.randn(2, 300, 5, generator=generator)
    labels = (base + 2 * extra + torch.randn(300, 5, generator=generator)).argmax(1)

    def extras(rows: torch.Tensor, betas: Sequence[float]) -> Iterator[torch.Tensor]:
        return (beta * extra[rows] for beta in betas)

    alphas = [0.1 * 1.3**step for step in range(20)]
    found = likely_pair(base, extras, labels, alphas, (0.5, 1.0), usual=1.0)
    grid = {
        (alpha, beta): float(((base + alpha * beta * extra).argmax(1) == labels).float().mean())
        for alpha in alphas
        for beta in (0.5, 1.0)
    }
    best = max(grid.values())
    margin = (best * (1 - best) / 300) ** 0.5 / 2
    assert grid[found.alpha, found.beta] == pytest.approx(found.accuracy) and found.accuracy >= best - margin

    def loss(pair: tuple[float, float]) -> float:
        unlikely = F.cross_entropy(base + pair[0] * pair[1] * extra, labels, reduction="sum")
        return float(unlikely) + math.log(pair[0]) ** 2 / 2

    enough = [pair for pair, right in grid.items() if right >= best - margin]
    assert (found.alpha, found.beta) == min(enough, key=loss)


def test_the_logistic_probe_does_not_take_the_largest_of_equal_cs():
    features, labels, _ = toy(4, noise=0.05)
    clf = handful.LogisticProbe().fit(F.normalize(torch.as_tensor(features), dim=-1), labels)
    assert clf.selection_ == "support" and clf.selected_["C"] < 1e3


def test_tip_adapter_f_is_searched_on_images_that_its_keys_did_not_see(monkeypatch: pytest.MonkeyPatch):
    features, labels, text = toy(4)
    trained_on = list[int]()
    plain = handful.TipAdapterF.train

    def train(self: handful.TipAdapterF, task: handful.estimator.Task, *more: object) -> object:
        trained_on.append(len(task.labels))
        return plain(self, task, *more)

    monkeypatch.setattr(handful.TipAdapterF, "train", train)
    clf = handful.TipAdapterF(selection="support", epochs=3, views=0)
    clf.fit(features, labels, class_names=list("abc"), class_weights=text)
    assert trained_on == [12, 9, 9, 9, 9]
    fixed = handful.TipAdapterF(epochs=3, views=0)
    fixed.fit(features, labels, class_names=list("abc"), class_weights=text)
    np.testing.assert_array_equal(clf.head_.keys, fixed.head_.keys)  # trained at the alpha given

"""Every method: what the paper's definition forces, and its hyper-parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from methods_made import NAMES, toy
from sklearn.linear_model import LogisticRegression

import handful
from handful.cache import CacheHead, cache_logits
from handful.methods.features.tip_adapter import searched
from handful.search import best_pair, best_ratio, by_class, sweep
from handful.selection import folds, search_c, shot_numbers

# -- zero-shot ------------------------------------------------------------------------------------


def test_zero_shot_is_scaled_cosine_to_normalised_text(tiny: handful.Backbone):
    clf = handful.ZeroShot(tiny, templates="a photo of a {}.").fit(class_names=["red_panda", "cat"])
    tokens = tiny.tokenize(["a photo of a cat.", "a photo of a red panda."])  # the classes are sorted
    weights = F.normalize(tiny.encode_text(tokens), dim=-1)
    features = torch.randn(5, 16)
    expected = tiny.scale * F.normalize(features, dim=-1) @ weights.T
    np.testing.assert_allclose(clf.logits(features), expected, atol=1e-5)


def test_an_ensemble_normalises_averages_normalises(tiny: handful.Backbone):
    ours = handful.class_weights(tiny, NAMES, ["a {}.", "the {} itself"])
    single = [handful.class_weights(tiny, NAMES, t) for t in ("a {}.", "the {} itself")]
    torch.testing.assert_close(ours, F.normalize(single[0] + single[1], dim=-1))


@pytest.mark.parametrize(
    ("templates", "count"),
    [("default", 1), ("oxford_pets", 1), ("imagenet7", 7), ("imagenet80", 80)],
)
def test_templates_of_the_catalogue(templates: str, count: int):
    from handful.prompts import resolve_templates

    assert len(resolve_templates(templates)) == count
    assert all("{}" in template for template in resolve_templates(templates))


@pytest.mark.parametrize("templates", ["oxford_cats", [], ["no place"], [3]])
def test_bad_templates(tiny: handful.Backbone, templates: object):
    with pytest.raises(handful.ParameterError, match="templates"):
        handful.ZeroShot(tiny, templates=templates).fit(class_names=NAMES)


@pytest.mark.parametrize("names", [[], ["cat", " "], ["_"]])
def test_bad_class_names(tiny: handful.Backbone, names: list[str]):
    with pytest.raises(handful.DataError, match="class name"):
        handful.ZeroShot(tiny).fit(class_names=names)


# -- linear probe ---------------------------------------------------------------------------------


def test_logistic_probe_is_logistic_regression_on_raw_features():
    features, labels, _ = toy()
    clf = handful.LogisticProbe(selection="fixed", C=0.5).fit(features, labels)
    model = LogisticRegression(C=0.5, max_iter=1000).fit(features.numpy(), labels)
    test = 3 * toy(seed=0)[0] + 0.1
    np.testing.assert_allclose(clf.predict_proba(test), model.predict_proba(test.numpy()), atol=1e-4)
    assert clf.predict(test).dtype.kind == "i"


def test_logistic_probe_of_two_classes():
    features, labels, _ = toy()
    features, labels = features[labels < 2], labels[labels < 2]
    clf = handful.LogisticProbe(selection="fixed").fit(features, labels)
    model = LogisticRegression(C=0.316, max_iter=1000).fit(features.numpy(), labels)
    np.testing.assert_allclose(clf.predict_proba(features), model.predict_proba(features.numpy()), atol=1e-5)


def test_logistic_probe_at_one_shot_says_that_nothing_was_searched():
    features, labels, _ = toy(shots=1)
    clf = handful.LogisticProbe().fit(features, labels)
    assert clf.selection_ == "fixed"
    assert any("not searched" in note for note in clf.notes_)
    assert clf.selected_ == {"C": 0.316}


def test_the_search_for_c_brackets_and_bisects():
    tried = []

    def score(c: float) -> float:
        tried.append(c)
        return -abs(np.log10(c) - 0.6)

    assert abs(np.log10(search_c(score)) - 0.6) < 0.02
    assert tried[:7] == [1e-6, 1e-4, 1e-2, 1, 1e2, 1e4, 1e6]
    assert len(tried) == len(set(tried))


def test_the_search_for_c_prefers_the_smaller_on_ties():
    assert search_c(lambda c: 0.0) == pytest.approx(1e5, rel=0.02)


# -- Tip-Adapter ----------------------------------------------------------------------------------


def test_tip_adapter_is_the_formula():
    features, labels, text = toy()
    clf = handful.TipAdapter(alpha=2.0, beta=3.0).fit(features, labels, class_names=NAMES, class_weights=text)
    x = F.normalize(torch.randn(7, 16), dim=-1)
    affinity = x @ F.normalize(features, dim=-1).T
    values = F.one_hot(torch.from_numpy(labels), 3).float()
    expected = 100 * x @ text.T + 2.0 * torch.exp(-3.0 * (1 - affinity)) @ values
    np.testing.assert_allclose(clf.decision_function(5 * x), expected, atol=1e-4)


def test_tip_adapter_without_residual_is_zero_shot():
    features, labels, text = toy()
    given = {"class_names": NAMES, "class_weights": text}
    tip = handful.TipAdapter(alpha=0.0).fit(features, labels, **given)
    np.testing.assert_array_equal(
        tip.decision_function(features), handful.ZeroShot().fit(**given).decision_function(features)
    )


def test_tip_adapter_at_large_beta_keeps_exact_matches_only():
    keys = F.normalize(torch.randn(5, 8), dim=-1)
    head = CacheHead(torch.eye(3, 8), keys[[0, 0, 0, 1, 2]], torch.tensor([0, 0, 0, 1, 2]), 100, 1, 5)
    cache = replace(head, beta=1e4).cache(keys[[0, 1]])
    torch.testing.assert_close(cache, torch.tensor([[3.0, 0, 0], [0, 1, 0]]), atol=5e-2, rtol=0)


def test_tip_adapter_does_not_care_for_the_order_of_its_support(monkeypatch: pytest.MonkeyPatch):
    features, labels, text = toy()
    order = np.random.default_rng(0).permutation(len(labels))
    given = {"class_names": NAMES, "class_weights": text}
    one = handful.TipAdapter().fit(features, labels, **given)
    other = handful.TipAdapter().fit(features[order], labels[order], **given)
    np.testing.assert_allclose(one.decision_function(features), other.decision_function(features), atol=1e-4)
    monkeypatch.setattr("handful.cache.CHUNK", 5)
    np.testing.assert_allclose(one.decision_function(features), other.decision_function(features), atol=1e-4)


def test_tip_adapter_selects_inside_the_support_set():
    features, labels, text = toy(shots=6)
    given = {"class_names": NAMES, "class_weights": text}
    clf = handful.TipAdapter(selection="support").fit(features, labels, **given)
    assert clf.selection_ == "support"
    assert clf.selected_["beta"] in np.linspace(0.5, 20, 40)
    single = handful.TipAdapter(selection="support").fit(features[::6], labels[::6], **given)
    assert (single.selection_, single.selected_) == ("fixed", {"alpha": 1.17, "beta": 5.5})


@pytest.mark.parametrize("bad", [{"alpha": -1}, {"beta": 0}, {"selection": "oracle"}])
def test_tip_adapter_refuses(bad: dict[str, object]):
    features, labels, text = toy()
    with pytest.raises(handful.ParameterError, match=next(iter(bad))):
        handful.TipAdapter(**bad).fit(features, labels, class_names=NAMES, class_weights=text)


# -- selection ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_the_exact_ratio_is_never_beaten_by_a_fine_grid(seed: int):
    generator = torch.Generator().manual_seed(seed)
    base, extra = torch.randn(2, 60, 7, generator=generator).unbind()
    labels = torch.randint(0, 7, (60,), generator=generator)
    ratio, accuracy = best_ratio(base, extra, labels, 0.1, 5.0)
    grid = [
        float(((base + a * extra).argmax(1) == labels).double().mean()) for a in np.linspace(0.1, 5, 4001)
    ]
    assert accuracy >= max(grid)
    assert accuracy == float(((base + ratio * extra).argmax(1) == labels).double().mean())
    assert 0.1 <= ratio <= 5.0


def test_ties_keep_the_first_stretch():
    """Two images, each right in a stretch of its own, and both as good as one of them."""
    starts, ends = torch.tensor([0.5, 2.0]), torch.tensor([1.0, 4.0])
    assert sweep(starts, ends, 0.0, 5.0) == (0.75, 1)
    assert sweep(starts.flip(0), ends.flip(0), 0.0, 5.0) == (0.75, 1)
    assert sweep(starts, ends, 0.75, 5.0) == (0.875, 1)
    assert sweep(starts[:0], ends[:0], 1.0, 5.0) == (3.0, 0)


def two_peaks() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two images of class 0 among three: one is right for a ratio from 1 to 2, the other from 3 to 4."""
    base = torch.tensor([[0.0, 1.0, -2.0], [0.0, 3.0, -4.0]])
    extra = torch.tensor([[0.0, -1.0, 1.0]]).repeat(2, 1)
    return base, extra, torch.tensor([0, 0])


def test_ties_of_a_ratio_keep_the_first_stretch():
    base, extra, labels = two_peaks()
    assert best_ratio(base, extra, labels, 0.0, 5.0) == (1.5, 0.5)
    assert best_ratio(base.flip(0), extra, labels, 0.0, 5.0) == (1.5, 0.5)


def test_ties_of_a_pair_keep_the_smallest_beta():
    base, extra, labels = two_peaks()
    asked: list[float] = []

    def extras(rows: torch.Tensor, betas: Sequence[float]) -> Iterator[torch.Tensor]:
        for beta in betas:
            asked.append(beta)
            yield extra[rows] * min(beta, 2.0)  # from 2 on nothing changes

    found = best_pair(base, extras, labels, (0.0, 5.0), [0.1, 2.0, 3.0, 9.0])
    assert (found.alpha, found.beta, found.accuracy) == (0.75, 2.0, 0.5)
    assert set(asked) == {0.1, 2.0, 3.0, 9.0}


@pytest.mark.parametrize("counts", [[4, 4, 4], [1, 5, 3]])
def test_the_exact_search_of_a_cache_is_never_beaten_by_a_grid(counts: list[int]):
    generator = torch.Generator().manual_seed(sum(counts) + counts[0])
    key_labels = torch.arange(3).repeat_interleave(torch.tensor(counts))
    key_labels = key_labels[torch.randperm(len(key_labels), generator=generator)]
    keys, x = (F.normalize(torch.randn(n, 6, generator=generator), dim=-1) for n in (len(key_labels), 300))
    labels, base = torch.randint(0, 3, (300,), generator=generator), torch.randn(300, 3, generator=generator)
    hidden = torch.rand(300, len(key_labels), generator=generator) < 0.2
    betas = [0.5 * i for i in range(1, 41)]

    def nearness(rows: torch.Tensor) -> torch.Tensor:
        return (x[rows] @ keys.T).masked_fill(hidden[rows], -torch.inf)

    def accuracy(alpha: float, beta: float) -> float:
        affinity = torch.exp(-beta * (1 - nearness(torch.arange(300))))
        logits = base + alpha * affinity @ F.one_hot(key_labels, 3).float()
        return float((logits.argmax(1) == labels).double().mean())

    index = by_class(key_labels, 3)
    found = best_pair(
        base, lambda rows, at: cache_logits(nearness(rows), index, at), labels, (0.1, 5.0), betas
    )
    assert found.accuracy == pytest.approx(accuracy(found.alpha, found.beta))
    assert found.accuracy >= max(accuracy(a, b) for a in np.linspace(0.1, 5, 40) for b in betas)


def accuracy_inside(head: CacheHead) -> float:
    """By hand: the classifier without a shot, on that shot."""
    shots, right = shot_numbers(head.labels), 0
    for shot in shots.unique():
        out = shots == shot
        left = CacheHead(
            head.class_weights, head.keys[~out], head.labels[~out], head.scale, head.alpha, head.beta
        )
        right += int((left.read(head.keys[out]).argmax(1) == head.labels[out]).sum())
    return right / len(head.labels)


def test_the_search_inside_a_support_set_hides_one_whole_shot():
    features, labels, text = toy(shots=5)
    keys, rows = F.normalize(features, dim=-1), torch.from_numpy(labels)
    found = searched(CacheHead(text, keys, rows, 100.0, 1.0, 1.0), None, "wide")
    right = 0
    for shot in range(5):  # by hand: the classifier without that shot, on that shot
        out = torch.arange(15) % 5 == shot
        left = CacheHead(text, keys[~out], rows[~out], 100.0, found.alpha, found.beta)
        right += int((left.read(keys[out]).argmax(1) == rows[out]).sum())
    best = max(
        accuracy_inside(CacheHead(text, keys, rows, 100.0, alpha, beta))
        for alpha in np.linspace(0.1, 50, 60) for beta in (0.5, 2.0, 5.5, 12.0)
    )  # fmt: skip
    assert accuracy_inside(found) == pytest.approx(right / 15)
    assert right / 15 >= best


def test_folds_hold_out_every_image_once_and_leave_every_class():
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2])
    seen = []
    for fit, out in folds(labels, 2):
        assert set(labels[fit]) == {0, 1, 2}
        assert not set(fit) & set(out)
        seen += out.tolist()
    assert sorted(seen) == list(range(9))
    for fit, out in folds(np.array([0, 1, 1, 1]), 3):  # an image that is alone is never held out
        assert 0 in fit
        assert len(out) == 1

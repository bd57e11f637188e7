"""Each method is the formula of its paper, and keeps scikit-learn's manners."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression

import handful
from handful.methods.features.tip_adapter import CacheHead, cache_logits, searched
from handful.search import best_pair, best_ratio, by_class, sweep
from handful.selection import folds, search_c, shot_numbers

NAMES = ["cat", "dog", "red panda"]
ENOUGH = {
    "coop": {"init": "a photo of the number", "lr": 0.02, "epochs": 30, "views": 0},
    "cocoop": {"init": "a photo of the number", "epochs": 2, "views": 0},
    "clip-adapter": {"epochs": 30, "views": 0},
    "tip-adapter-f": {"views": 0},
    "fine-tuning": {"epochs": 10, "views": 0},
}
"""What a method of the text tower needs to get somewhere with forty images in seconds."""


def toy(shots: int = 4, width: int = 16, seed: int = 0):
    """Features around one centre for each of three classes, and text weights near the centres."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(3, width, generator=generator)
    labels = torch.arange(3).repeat_interleave(shots)
    features = centres[labels] + 0.8 * torch.randn(len(labels), width, generator=generator)
    text = F.normalize(centres + 1.5 * torch.randn(3, width, generator=generator), dim=-1)
    return features, labels.numpy(), text


@pytest.fixture(params=sorted(handful.METHODS))
def method(request: pytest.FixtureRequest) -> type[handful.FewShotClassifier]:
    return handful.METHODS[request.param]


# -- zero-shot ---------------------------------------------------------------------------------------


def test_zero_shot_is_scaled_cosine_to_normalised_text(tiny: handful.Backbone):
    clf = handful.ZeroShot(tiny, templates="a photo of a {}.").fit(class_names=["red_panda", "cat"])
    tokens = tiny.tokenize(["a photo of a red panda.", "a photo of a cat."])
    weights = F.normalize(tiny.encode_text(tokens), dim=-1)
    features = torch.randn(5, 16)
    expected = tiny.scale * F.normalize(features, dim=-1) @ weights.T
    np.testing.assert_allclose(clf.decision_function(features), expected, atol=1e-5)


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


# -- linear probe ------------------------------------------------------------------------------------


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
    assert "not searched" in clf.notes_[0]
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


# -- Tip-Adapter -------------------------------------------------------------------------------------


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
    monkeypatch.setattr("handful.methods.features.tip_adapter.CHUNK", 5)
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


# -- selection ---------------------------------------------------------------------------------------


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


# -- manners -----------------------------------------------------------------------------------------


def test_parameters_are_stored_untouched_and_cloned(method: type[handful.FewShotClassifier]):
    clf = method("mini")
    assert clf.backbone == "mini"
    assert clone(clf).get_params() == clf.get_params()
    assert type(clf).__name__ in repr(clf)


def test_predict_before_fit(method: type[handful.FewShotClassifier]):
    with pytest.raises(handful.NotFitted, match=r"Call fit"):
        method("mini").predict(np.zeros((1, 256), np.float32))


def test_fit_predict_score_on_real_images(
    method: type[handful.FewShotClassifier],
    mini: handful.Backbone,
    support: handful.ImageSet,
    held_out: handful.ImageSet,
):
    clf = method(mini, **ENOUGH.get(method.method, {})).fit(support)
    probabilities = clf.predict_proba(held_out)
    assert probabilities.shape == (len(held_out), 10)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    predicted = clf.predict(held_out)
    truth = np.array(held_out.class_names)[held_out.labels]
    assert clf.score(held_out) == clf.score(list(held_out.items), truth) == np.mean(predicted == truth)
    assert clf.score(held_out) > 0.3
    assert clf.classes_.tolist() == list(support.class_names)


def test_every_form_of_image_gives_the_same(mini: handful.Backbone, support: handful.ImageSet):
    from PIL import Image

    names = np.array(support.class_names)[support.labels]
    clf = handful.TipAdapter(mini).fit(list(support.items), names)
    path = support.items[0]
    opened = Image.open(path)
    colour = np.asarray(opened.convert("RGB"))
    forms = [path, [path], [str(path)], opened, [opened], [np.asarray(opened)], colour, colour[None]]
    forms.append(handful.encode(mini, [path]))
    expected = clf.decision_function(support)[:1]
    for form in forms:
        np.testing.assert_allclose(clf.decision_function(form), expected, atol=1e-4)


def test_a_fit_depends_on_nothing_but_what_it_is_given(mini: handful.Backbone, support: handful.ImageSet):
    def fit(seed: int) -> np.ndarray:
        return handful.TipAdapter(mini, views=2, seed=seed).fit(support).head_.keys.numpy()

    torch.manual_seed(1)
    one = fit(0)
    torch.manual_seed(2)
    np.testing.assert_array_equal(one, fit(0))
    assert not np.array_equal(one, fit(1))


def test_integer_labels(mini: handful.Backbone):
    features, labels, _ = toy()
    with pytest.raises(handful.DataError, match="class_names"):
        handful.TipAdapter(mini).fit(features, labels)
    clf = handful.LogisticProbe(selection="fixed").fit(features, labels + 7)
    assert set(clf.predict(features)) == {7, 8, 9}
    assert clf.score(features, labels + 7) > 0.9


X = np.ones((2, 4), np.float32)
AB = ["a", "b"]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({}, "nothing to fit"),
        ({"images": X}, "without labels"),
        ({"images": X, "labels": ["a"]}, "one each"),
        ({"images": handful.Features.from_array(X), "labels": ["a"]}, "one each"),
        ({"images": np.inf * X, "labels": AB, "class_weights": X}, "NaN or infinity"),
        ({"images": X, "labels": AB, "class_weights": np.ones((3, 4))}, r"expected \[2, E\]"),
        ({"images": X, "labels": AB, "class_weights": np.ones((2, 5))}, "one joint space"),
        ({"images": X, "labels": ["a", "c"], "class_names": AB}, "class_names"),
    ],
)
def test_bad_support_sets(arguments: dict[str, object], match: str):
    with pytest.raises((handful.DataError, handful.ParameterError), match=match):
        handful.TipAdapter().fit(**arguments)


def test_a_method_without_a_backbone_says_so():
    with pytest.raises(handful.ParameterError, match="needs a backbone"):
        handful.TipAdapter().fit(np.ones((2, 4), np.float32), ["a", "b"])
    with pytest.raises(handful.ParameterError, match="backbone=3"):
        handful.TipAdapter(3).fit(np.ones((2, 4), np.float32), ["a", "b"])


def test_features_of_another_backbone(
    mini: handful.Backbone, tiny: handful.Backbone, support: handful.ImageSet
):
    clf = handful.TipAdapter(mini).fit(support)
    with pytest.raises(handful.FingerprintError):
        clf.predict(handful.encode(tiny, support))
    with pytest.raises(handful.DataError, match="16 wide"):
        clf.predict(np.ones((1, 16), np.float32))


def test_labels_that_the_classifier_does_not_know(mini: handful.Backbone, support: handful.ImageSet):
    clf = handful.ZeroShot(mini).fit(class_names=["one", "two"])
    with pytest.raises(handful.DataError, match="does not know"):
        clf.score(support)


# -- what a hostile newcomer found -------------------------------------------------------------------


def test_rows_by_mask_slice_and_number():
    images = handful.ImageSet(tuple("abcd"), np.array([0, 1, 0, 1]), ("x", "y"))
    features = handful.Features.from_array(np.arange(8, dtype=np.float32).reshape(4, 2))
    assert images[images.labels == 1].items == ("b", "d")
    assert images[1:3].items == ("b", "c")
    assert features[images.labels == 1].values[:, 0, 0].tolist() == [2, 6]
    for rows in ([9], [0.5], [True], 3):
        with pytest.raises(handful.ParameterError, match="rows"):
            images[rows]


def test_an_image_in_memory_is_known_by_what_is_seen(mini: handful.Backbone):
    from PIL import Image

    one = Image.new("P", (64, 64))
    other = one.copy()
    one.putpalette([255, 0, 0])
    other.putpalette([0, 0, 255])
    turned = Image.linear_gradient("L")
    upright = turned.copy()
    turned.getexif()[0x0112] = 6
    values = handful.encode(mini, [one, other, upright, turned]).values
    assert float((values[0] - values[1]).abs().max()) > 0.1
    assert float((values[2] - values[3]).abs().max()) > 0.1


@pytest.mark.parametrize(
    ("method", "bad"),
    [
        ("tip-adapter", {"alpha": float("inf")}),
        ("tip-adapter", {"alpha": "abc"}),
        ("tip-adapter", {"beta": None}),
        ("tip-adapter", {"alpha": True}),
        ("logistic-probe", {"C": float("nan")}),
        ("logistic-probe", {"folds": 1}),
        ("logistic-probe", {"folds": 2.5}),
    ],
)
def test_parameters_are_checked(method: str, bad: dict[str, object]):
    features, labels, text = toy()
    with pytest.raises(handful.ParameterError, match=next(iter(bad))):
        handful.METHODS[method](**bad).fit(features, labels, class_names=NAMES, class_weights=text)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["a", None], AB), ([0.9, 1.9], AB), ([np.nan, 1.0], AB), (["a", "b"], [0, 1]), (["a", "b"], "ab"),
        (["Cat", "cat"], None), (["a", "b"], ["a", "b", "A"]), ([True, False], AB),
    ],
)  # fmt: skip
def test_labels_and_names_are_checked(labels: list, names: object):
    with pytest.raises((handful.DataError, handful.ParameterError)):
        handful.LogisticProbe(selection="fixed").fit(X, labels, class_names=names)


def test_names_may_be_an_array():
    clf = handful.LogisticProbe(selection="fixed").fit(X, AB, class_names=np.array(["b", "a"]))
    assert clf.classes_.tolist() == ["b", "a"]


def test_score_checks_what_it_is_given():
    features, labels, text = toy()
    clf = handful.TipAdapter().fit(features, labels, class_names=NAMES, class_weights=text)
    names = np.array(NAMES)[labels]
    assert clf.score(features, labels) == clf.score(features, np.char.upper(names)) > 0.8
    for bad in (names[:3], [-1] * len(labels), ["zebra"] * len(labels), [9] * len(labels)):
        with pytest.raises(handful.DataError):
            clf.score(features, bad)


def test_a_fit_that_fails_leaves_the_last_one_whole(tmp_path: Path):
    features, labels, text = toy()
    given = {"class_names": NAMES, "class_weights": text}
    clf = handful.TipAdapter(alpha=2.0).fit(features, labels, **given)
    before = clf.info()
    with pytest.raises(handful.ParameterError):
        clf.set_params(alpha=-1).fit(features, labels, **given)
    after = clf.info()
    assert after["parameters"]["alpha"] == 2.0  # what it was fitted with, not what was set since
    assert {**after, "saved": 0} == {**before, "saved": 0}


def test_grid_search_and_pickle_and_save(mini: handful.Backbone, support: handful.ImageSet, tmp_path: Path):
    import pickle

    from sklearn.model_selection import GridSearchCV

    features, labels, text = toy(shots=6)
    search = GridSearchCV(handful.TipAdapter(), {"alpha": np.arange(1, 4)}, cv=2)
    best = search.fit(
        features, np.array(NAMES)[labels], class_weights=text, class_names=NAMES
    ).best_estimator_
    best.save(tmp_path / "best")
    assert handful.load(tmp_path / "best").alpha == best.alpha
    clf = handful.TipAdapter(mini).fit(support)
    again = pickle.loads(pickle.dumps(clf))
    np.testing.assert_array_equal(again.decision_function(support), clf.decision_function(support))


def test_an_image_set_brings_its_own_labels(mini: handful.Backbone, support: handful.ImageSet):
    with pytest.raises(handful.DataError, match="its own labels"):
        handful.ZeroShot(mini).fit(support, class_names=["x"])


def test_images_that_cannot_be_read_in_memory(mini: handful.Backbone, tmp_path: Path, digits: Path):
    import io

    from PIL import Image

    clf = handful.ZeroShot(mini).fit(class_names=AB)
    whole = next((digits / "test/one").iterdir()).read_bytes()
    Image.new("1", (400_000, 1)).save(tmp_path / "thin.png")
    bad = [Image.open(io.BytesIO(whole[: len(whole) // 2])), Image.new("RGB", (0, 0)), "a\0b", None, 5]
    for image in [*bad, tmp_path / "thin.png"]:
        with pytest.raises((handful.DataError, handful.ParameterError)):
            clf.predict(image)

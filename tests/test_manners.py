"""Manners that every method has, and what a hostile newcomer found."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from methods_made import ENOUGH, NAMES, toy
from sklearn.base import clone

import handful

# -- manners --------------------------------------------------------------------------------------


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
    clf, held_out = method(mini, **ENOUGH.get(method.method, {})).fit(support), held_out[::2]
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


def test_features_of_no_known_backbone_need_none(mini: handful.Backbone):
    """Fitted on plain vectors, a classifier reads `Features` too, of whatever backbone."""
    vectors, labels, _ = toy()
    clf = handful.LogisticProbe(selection="fixed").fit(vectors, labels)
    expected = clf.decision_function(vectors)
    for fingerprint in ("", mini.fingerprint):
        given = dataclasses.replace(handful.Features.from_array(vectors), fingerprint=fingerprint)
        np.testing.assert_array_equal(clf.decision_function(given), expected)
        assert clf.score(given, labels) > 0.9
    with pytest.raises(handful.HandfulError, match="needs a backbone"):
        clf.predict([np.zeros((8, 8, 3), np.uint8)])


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


# -- what a hostile newcomer found ----------------------------------------------------------------


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
    assert clf.classes_.tolist() == ["a", "b"]


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

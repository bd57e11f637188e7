"""Class weights that are given: names may come twice, and calibrate takes those of the fit."""

from __future__ import annotations

import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys import toy

import handful
from handful import methods
from handful.refiner import Refiner

TWICE = ["crane", "dog", "Crane"]


@pytest.mark.parametrize(
    "method", ["auto", "zero-shot", "linear-probe", "tip-adapter", "logistic-probe", "tda"]
)
def test_names_may_come_twice_where_weights_and_integers_tell_classes_apart(method: str, tmp_path: Path):
    features, labels, text = toy(noise=0.3)
    clf = handful.METHODS[method]().fit(features, labels, class_names=TWICE, class_weights=text)
    plain = handful.METHODS[method]().fit(features, labels, class_names=list("abc"), class_weights=text)
    assert clf.class_names_ == ("Crane (2)", "crane", "dog")
    assert any("'Crane (2)' is row 2" in note for note in clf.notes_)
    for one in (clf, handful.load(clf.save(tmp_path / "clf"))):
        rows = np.array([0, 1, 2])[one.match(["crane", "dog", "Crane (2)"])]
        np.testing.assert_allclose(one.logits(features)[:, rows], plain.logits(features), atol=1e-3)
        assert one.score(features, labels) == plain.score(features, labels) > 0.8
        assert set(one.predict(features)) == set(clf.class_names_)


def test_a_number_that_is_taken_is_passed_over():
    _, _, text = toy()
    clf = handful.ZeroShot().fit(class_names=["a", "a (2)", "a"], class_weights=text)
    assert clf.class_names_ == ("a", "a (2)", "a (3)")


def test_names_that_tell_classes_apart_must_be_distinct(mini: handful.Backbone):
    features, labels, text = toy()
    for arguments in (
        {"labels": np.array(["crane", "dog"])[labels % 2], "class_names": TWICE, "class_weights": text},
        {"labels": None, "class_names": TWICE, "images": None},
    ):
        with pytest.raises(handful.DataError, match="duplicate class names"):
            handful.ZeroShot(mini).fit(**{"images": features, **arguments})


@pytest.mark.parametrize(
    "method", ["auto", "zero-shot", "linear-probe", "tip-adapter", "text-tuning", "ape-t", "gda"]
)
@pytest.mark.parametrize("names", [["b", "c", "a"], None])
def test_calibrate_takes_the_class_weights_of_the_fit(method: str, names: list[str] | None, tmp_path: Path):
    features, labels, text = toy(6, noise=0.3)
    more: dict[str, Any] = {"epochs": 2, "views": 0} if method in ("text-tuning", "ape-t") else {}
    given = {"class_names": names, "class_weights": 3 * text}
    marks = labels if names else np.array(["a", "b", "c"])[labels]

    def fit() -> handful.FewShotClassifier:
        return handful.METHODS[method](**more).fit(features, marks, **given)

    expected = fit().calibrate(features, marks, class_weights=3 * text).calibration_
    clf = fit()
    saved = clf.save(tmp_path / "clf")
    for one in (clf, handful.load(saved)):
        found = one.calibrate(features, marks).calibration_
        assert found.temperature == pytest.approx(expected.temperature, rel=1e-4)
        assert found.threshold == pytest.approx(expected.threshold, abs=1e-5)
    again = handful.load(clf.save(tmp_path / "again"))
    np.testing.assert_allclose(again.predict_proba(features), clf.predict_proba(features), atol=1e-6)


def test_class_weights_with_no_norm_of_one_come_back_as_they_were(tmp_path: Path):
    features, labels, text = toy()
    clf = handful.LinearProbe().fit(features, labels, class_names=["b", "c", "a"], class_weights=3 * text)
    found = handful.load(clf.save(tmp_path / "clf")).fitted_.given_weights
    assert torch.equal(found, 3 * text[[2, 0, 1]])


def test_calibrating_on_means_of_views_warns():
    features, labels, text = toy(8)
    views = handful.Features(torch.stack([features, features + 0.1], 1))
    clf = handful.TipAdapter().fit(views, labels, class_names=list("abc"), class_weights=text)
    with pytest.warns(UserWarning, match="several views of each support image"):
        clf.calibrate(views, labels, false_alarm=0.1)
    assert any("more images would be called unknown" in note for note in clf.notes_)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clf.calibrate(features, labels, false_alarm=0.1)


def test_a_saved_meta_adapter_calibrates_with_its_own_network(tmp_path: Path):
    features, labels, text = toy(4)
    refiner = Refiner(16).reset(torch.Generator().manual_seed(0))
    clf = handful.MetaAdapter(refiner=refiner).fit(
        features, labels, class_names=list("abc"), class_weights=text
    )
    loaded = handful.load(clf.save(tmp_path / "clf"))
    expected = clf.calibrate(features, labels, false_alarm=0.1).calibration_.temperature
    assert loaded.calibrate(features, labels, false_alarm=0.1).calibration_.temperature == pytest.approx(
        expected, rel=1e-5
    )


def test_a_label_that_the_fit_did_not_see_is_wrong():
    features, labels, text = toy(noise=0.3)
    names = np.array(["a", "b", "c"])[labels]
    clf = handful.TipAdapter().fit(features, names, class_weights=text)
    unseen = names.astype(object)
    unseen[0] = "d"
    right = clf.predict(features) == names
    assert clf.score(features, unseen) == pytest.approx(right[1:].sum() / len(names))
    with pytest.raises(handful.DataError, match="does not know"):
        clf.score(features, ["x"] * len(names))


def test_entry_points_are_read_once(monkeypatch: pytest.MonkeyPatch):
    times = 0

    def entry_points(**given: Any) -> list[metadata.EntryPoint]:
        nonlocal times
        times += 1
        return [metadata.EntryPoint("mine", "handful.methods.features.zero_shot:ZeroShot", "handful.methods")]

    monkeypatch.setattr(methods, "entry_points", entry_points)
    assert methods._known("mine") is handful.ZeroShot and times == 1
    assert methods._known("tip-adapter") is handful.TipAdapter and times == 1


def test_one_image_is_one_image():
    with pytest.raises(handful.DataError, match="Got 1 image and labels"):
        handful.ZeroShot().fit(np.ones((1, 4), np.float32), ["a", "b"], class_weights=np.ones((2, 4)))

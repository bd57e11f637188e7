"""Probabilities that mean what they say, and images of no class."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import handful
from handful.estimator.calibrating import fit_temperature
from handful.estimator.confidence import images_needed, threshold_at
from handful.metrics import calibration_error


@pytest.fixture
def strange(tmp_path: Path) -> list[Path]:
    """Images of nothing that was learned."""
    generator = np.random.default_rng(0)
    paths = []
    for number in range(20):
        pixels = generator.integers(0, 256, (4, 4, 3), np.uint8)
        path = tmp_path / "strange" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).resize((64, 64)).save(path)
        paths.append(path)
    return paths


def test_the_temperature_is_the_one_that_labels_were_drawn_with():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4000, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    for factor in (0.2, 1.0, 20.0):
        assert fit_temperature(factor * logits, labels) == pytest.approx(factor, rel=0.1)


@pytest.mark.parametrize("count", [2, 6, 40])
def test_a_few_images_that_are_all_right_make_nobody_certain(count: int):
    labels = torch.arange(2).repeat(count // 2)
    assert 0.5 < fit_temperature(5 * torch.eye(2)[labels], labels) < 1
    assert fit_temperature(-50 * torch.eye(2)[labels], labels) > 10  # but all wrong and certain


def test_false_alarms_are_as_rare_as_stated():
    """Conformal: over many draws, at most the stated share of known images is below the threshold."""
    generator = np.random.default_rng(0)
    for rate in (0.05, 0.2):
        draws = generator.random((2000, 40)) ** 3
        alarms = [draw[-1] < threshold_at(draw[:-1], rate) for draw in draws]
        assert rate - 0.03 < np.mean(alarms) <= rate + 0.015
    assert threshold_at(np.array([0.5, 0.6]), 0.05) == -1  # too few to say
    for rate in [0.05, 0.07, 0.3, 0.5, 0.99, 1e-3, *(1 / n for n in range(2, 200))]:
        needed = images_needed(rate)
        assert threshold_at(np.linspace(0, 0.5, needed), rate) > -1
        assert needed == 1 or threshold_at(np.linspace(0, 0.5, needed - 1), rate) == -1


@pytest.mark.parametrize("name", ["tip-adapter", "linear-probe", "zero-shot", "logistic-probe", "mma"])
def test_calibrated_inside_the_support_set(
    name: str, mini: handful.Backbone, support: handful.ImageSet, held_out: handful.ImageSet,
    strange: list[Path], tmp_path: Path,
):  # fmt: skip
    parameters = {"epochs": 1, "views": 0} if name == "mma" else {}
    clf = handful.METHODS[name](mini, **parameters).fit(support)
    logits = clf.decision_function(held_out)
    with pytest.raises(handful.ParameterError, match="not calibrated"):
        clf.predict(held_out, unknown="auto")
    before = calibration_error(clf.predict_proba(held_out), held_out.labels)
    clf.calibrate(support, false_alarm=0.1, folds=4)
    np.testing.assert_array_equal(clf.decision_function(held_out), logits)
    found = clf.calibration_
    assert (found.images, found.folds, found.false_alarm) == (40, 4, 0.1)
    after = clf.predict_proba(held_out)
    assert calibration_error(after, held_out.labels) < max(before, 0.12)
    told = clf.predict(held_out, unknown="auto")
    alarms = np.mean(told == "unknown")
    assert alarms < 0.35  # 40 images say little about a rate of a tenth
    assert set(told) - {"unknown"} <= set(clf.class_names_)
    assert np.mean(clf.predict(strange, unknown="auto") == "unknown") > 0.9
    again = handful.load(clf.save(tmp_path / "kept"), backbone=mini)
    assert again.calibration_ == found
    np.testing.assert_array_equal(again.predict_proba(held_out), after)
    assert again.info()["calibration"]["threshold"] == found.threshold
    assert np.all(clf.predict(held_out, unknown=1.1) == "unknown")
    assert clf.fit(support).calibration_ is None


def test_a_changed_support_set_is_not_calibrated(mini: handful.Backbone, support: handful.ImageSet):
    clf = handful.TipAdapter(mini).fit(support).calibrate(support)
    assert clf.calibration_.threshold > -1
    clf.remove_class("zero")
    assert clf.calibration_ is None
    assert any("calibrate again" in note for note in clf.notes_)


def test_any_form_of_support_set(mini: handful.Backbone, support: handful.ImageSet):
    names = [support.class_names[row] for row in support.labels]
    features = handful.encode(mini, support)
    clf = handful.TipAdapter(mini)
    found = [
        clf.fit(images, labels).calibrate(images, labels).calibration_
        for images, labels in [(support, None), (list(support.items), names), (features, names)]
    ]
    assert found[0] == found[1]
    assert found[2].temperature == pytest.approx(found[0].temperature, rel=1e-4)
    numbers = handful.LogisticProbe(mini, C=1.0).fit(features, support.labels)
    numbers.calibrate(features, support.labels)
    assert numbers.predict(features, unknown=1.1).tolist() == [-1] * len(support)


def test_calibrations_that_cannot_be(mini: handful.Backbone, support: handful.ImageSet, tmp_path: Path):
    clf = handful.TipAdapter(mini).fit(support)
    one = handful.few_shot(support, 1, seed=1)
    with pytest.raises(handful.DataError, match="one image of each class"):
        clf.calibrate(one)
    with pytest.raises(handful.DataError, match=r"no image of \['zero'\]"):
        clf.calibrate(support[support.labels != support.class_names.index("zero")])
    for rate in (0, 1, -0.1, "often"):
        with pytest.raises(handful.ParameterError, match="false_alarm"):
            clf.calibrate(support, false_alarm=rate)
    with pytest.raises(handful.NotFitted):
        handful.TipAdapter(mini).calibrate(support)
    with pytest.raises(handful.ParameterError, match="unknown='sometimes'"):
        clf.predict(support, unknown="sometimes")
    few = handful.few_shot(support, 2, seed=1)
    assert "it takes 99" in clf.fit(few).calibrate(few, false_alarm=0.01).notes_[-1]
    for ask in (clf.predict, clf.classify, clf.stream):
        with pytest.warns(UserWarning, match="Nothing is called unknown: 20 held-out images are too few"):
            ask(few, unknown="auto")
    named = [*support.class_names[:-1], "unknown"]
    other = handful.ImageSet(support.items, support.labels, tuple(named))
    with pytest.raises(handful.ParameterError, match="class called 'unknown'"):
        clf.fit(other).predict(support, unknown=0.5)
    folder = clf.fit(support).calibrate(support).save(tmp_path / "kept")
    facts = json.loads((folder / "head.json").read_text())
    for bad in ({"temperature": 0}, {"temperature": 10**30}, {"threshold": "x"}, {"more": 1}):
        (folder / "head.json").write_text(json.dumps(facts | {"calibration": facts["calibration"] | bad}))
        with pytest.raises(handful.CheckpointError, match="calibration is damaged"):
            handful.load(folder, backbone=mini)


def test_from_the_command_line(digits: Path, strange: list[Path], tmp_path: Path, call):
    out = tmp_path / "model"
    code, said, err = call(
        "fit", digits / "train", "--shots", "4", "--calibrate", "0.05", "--out", out, "--json"
    )
    assert code == 0, err
    assert json.loads(said)["calibration"]["false_alarm"] == 0.05
    code, said, err = call("predict", out, strange[0], "--unknown", "1.01")
    assert code == 0, err
    assert "unknown, nearest" in said
    code, said, _ = call("predict", out, strange[0], "--unknown", "auto", "--json")
    assert json.loads(said)["results"][0]["unknown"] in (True, False)

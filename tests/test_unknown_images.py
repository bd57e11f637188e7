"""Test images of classes that a classifier does not know, and of no class."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import link_some
from PIL import Image
from sklearn import metrics as theirs

import handful
from handful.evaluation import evaluate

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def with_more(digits: Path, tmp_path: Path) -> Path:
    """Six images of each digit, and of two more classes: of one four, of the other none that it knows."""
    data = link_some(digits / "test", tmp_path / "test", 6)
    rng = np.random.default_rng(0)
    for name, count in (("unknown", 4), ("ten", 1)):
        (data / name).mkdir()
        for number in range(count):
            Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(data / name / f"{number}.png")
    return data


def test_more_classes_are_refused_left_out_or_of_no_class(calibrated: Path, with_more: Path, call: Call):
    code, text, err = call("evaluate", calibrated, with_more)
    assert (code, text) == (1, "")
    assert "Got 2 classes that this classifier does not know: ['ten', 'unknown']" in err
    assert "--on-error skip" in err and "--unknown auto" in err
    code, text, _ = call("evaluate", calibrated, with_more, "--on-error", "skip")
    assert (
        code == 0
        and "note: 5 images are left out, of classes that the classifier does not know: ten 1, unknown 4."
        in text
    )
    code, text, _ = call(
        "evaluate", calibrated, with_more, "--on-error", "skip", "--unknown", "auto", "--json"
    )
    facts = json.loads(text)
    assert (facts["images"], facts["left_out"], facts["unknown"]["unknown"]) == (60, {}, 5)
    assert facts["unknown"]["found"] == 1.0  # noise looks like no digit


def test_nothing_but_other_classes_is_refused(calibrated: Path, two_classes: Path, call: Call):
    for words in ([], ["--on-error", "skip"], ["--on-error", "skip", "--unknown", "auto"]):
        code, _, err = call("evaluate", calibrated, two_classes, *words)
        assert code == 1 and "It knows none of these" in err


def test_images_of_no_class_measure_the_rule(calibrated: Path, held_out: handful.ImageSet, two_classes: Path):
    clf = handful.load(calibrated)
    strange = sorted(two_classes.rglob("*.png"))
    found = evaluate(clf, held_out, unknown_images=strange).unknown
    called = clf.predict(held_out, unknown="auto") == "unknown"
    others = clf.predict(strange, unknown="auto") == "unknown"
    assert found is not None and found.rule == "familiarity" and found.stated == 0.1
    assert (found.false_alarms, found.found) == (called.mean(), others.mean())
    assert (found.known, found.unknown) == (len(held_out), 6)
    assert clf.calibration_ is not None and found.threshold == clf.calibration_.threshold
    assert found.auroc is not None and found.auroc > 0.9
    low, high = found.false_alarms_interval
    assert low <= found.false_alarms <= high
    by_share = evaluate(clf, held_out, unknown_images=strange, unknown=0.5).unknown
    shares = clf.predict_proba([*held_out.items, *strange]).max(1)
    assert by_share is not None and (by_share.rule, by_share.threshold, by_share.stated) == (
        "probability",
        0.5,
        None,
    )
    assert by_share.false_alarms == np.mean(shares[: len(held_out)] < 0.5)
    known = np.arange(len(shares)) < len(held_out)
    assert by_share.auroc == pytest.approx(theirs.roc_auc_score(known, shares))
    alone = evaluate(clf, held_out, unknown="auto").unknown
    assert alone is not None and (alone.found, alone.auroc, alone.unknown) == (None, None, 0)


def test_a_folder_of_no_class_may_be_nested_and_hold_leftovers(
    calibrated: Path, two_classes: Path, few_digits: Path, call: Call
):
    (two_classes / "lamp" / "deep").mkdir()
    next(two_classes.glob("lamp/*.png")).rename(two_classes / "lamp" / "deep" / "ünter.png")
    shutil.copy(next(two_classes.glob("lamp/*.png")), two_classes / "flat.png")
    (two_classes / "Thumbs.db").write_bytes(b"x"), (two_classes / "lamp" / ".DS_Store").write_bytes(b"x")
    words = ["evaluate", calibrated, few_digits / "test", "--unknown-folder", two_classes]
    code, text, err = call(*words)
    assert code == 0 and "images of no class, 7 of 7 files used" in err
    assert "2 hidden or left behind by systems and archives, passed over: .DS_Store, Thumbs.db" in err
    assert "of 7 images of no class 100.00 %" in text and "stated 10.00 %" in text
    (two_classes / "bad.png").write_text("no image")
    code, text, err = call(*words)
    assert (code, text) == (1, "") and "bad.png" in err and "--on-error skip" in err
    code, text, err = call(*words, "--on-error", "skip")
    assert code == 0 and "7 of 8 files used, 1 left out" in err


def test_a_rule_must_be_there(few_digits: Path, two_classes: Path, tmp_path: Path, call: Call, support):
    handful.TipAdapter("mini").fit(support).save(tmp_path / "plain")
    words = ["evaluate", tmp_path / "plain", few_digits / "test", "--unknown-folder"]
    code, text, err = call(*words, two_classes)
    assert (code, text) == (1, "") and "not calibrated" in err and "--unknown 0.5" in err
    code, text, _ = call(*words, two_classes, "--unknown", "0.5")
    assert code == 0 and "unknown is a probability below 0.5" in text
    for folder, hint in (
        (tmp_path / "nowhere", "a folder of images"),
        (few_digits.parent / "void", "where no image is"),
    ):
        (few_digits.parent / "void").mkdir(exist_ok=True)
        code, _, err = call(*words, folder, "--unknown", "0.5")
        assert code == 1 and hint in err
    code, _, err = call(*words, two_classes, "--unknown", "perhaps")
    assert code == 1 and "'auto', or a probability" in err


def test_a_threshold_that_calls_nothing_unknown_is_said(
    mini: handful.Backbone, support, held_out, two_classes: Path
):
    some = support.of_classes([0, 1, 2])
    clf = handful.TipAdapter(mini).fit(some)
    clf.calibrate(some, false_alarm=0.01)
    found = evaluate(clf, some, unknown_images=sorted(two_classes.rglob("*.png")))
    assert found.unknown is not None and found.unknown.found == 0
    assert any("too few images to call any image unknown" in note for note in found.notes)


def test_what_is_given_in_python(calibrated: Path, held_out: handful.ImageSet):
    clf, some = handful.load(calibrated), held_out[:10]
    names = [some.class_names[row] for row in some.labels]
    found = evaluate(clf, (item for item in some.items), [name.upper() for name in names])
    assert found == evaluate(clf, list(some.items), some.labels) == evaluate(clf, some)
    mixed = ["Ten", *names[1:]]
    assert evaluate(clf, some.items, mixed, other_classes="skip").left_out == {"Ten": 1}
    both = evaluate(clf, some.items, mixed, other_classes="unknown", unknown="auto")
    assert both.unknown is not None and (both.unknown.known, both.unknown.unknown) == (9, 1)
    of_one = held_out[held_out.labels == 0]  # which names ten classes
    assert evaluate(handful.TipAdapter(clf.backbone).fit(of_one.of_classes([0])), of_one).accuracy == 1
    with pytest.raises(handful.DataError, match="Got no images"):
        evaluate(clf, [], [])
    with pytest.raises(handful.DataError, match="Got features, expected images"):
        evaluate(clf, np.zeros((3, 256), np.float32), names[:3])  # type: ignore[arg-type]
    with pytest.raises(handful.DataError, match="Got no image among unknown_images"):
        evaluate(clf, some, unknown_images=[])
    with pytest.raises(handful.ParameterError, match="other_classes='drop'"):
        evaluate(clf, some, other_classes="drop")  # type: ignore[arg-type]
    for rule in (-1, 50, True, float("nan"), "0.5"):
        with pytest.raises(handful.ParameterError, match="Got unknown="):
            evaluate(clf, some, unknown=rule)

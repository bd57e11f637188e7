"""What an evaluation says beside accuracy, and of images that are of no class it knows."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import link_some
from PIL import Image
from sklearn import metrics as theirs

import handful
from handful import metrics
from handful.evaluation import Evaluation, evaluate

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(
    mini: handful.Backbone, support: handful.ImageSet, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    clf = handful.TipAdapter(mini).fit(support).calibrate(support, false_alarm=0.1)
    return clf.save(tmp_path_factory.mktemp("evaluation") / "model")


@pytest.fixture(scope="module")
def found(model: Path, held_out: handful.ImageSet) -> Evaluation:
    return evaluate(handful.load(model), held_out)


def unequal(digits: Path, counts: tuple[int, ...], target: Path) -> Path:
    """Link images of three classes."""
    for name, count in zip(("three", "eight", "nine"), counts, strict=True):
        for file in sorted((digits / "test" / name).iterdir())[:count]:
            place = target / name / file.name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(file)
    return target


# -- figures ---------------------------------------------------------------------------------------


def test_measures_are_those_of_scikit_learn(
    found: Evaluation, model: Path, held_out: handful.ImageSet, mini: handful.Backbone
):
    clf = handful.load(model)
    truth, predicted = clf.match(held_out.class_names)[held_out.labels], clf.predict(held_out)
    names = np.array(clf.class_names_)[truth]
    assert found.accuracy == theirs.accuracy_score(names, predicted)
    assert found.balanced_accuracy == pytest.approx(theirs.balanced_accuracy_score(names, predicted))
    labels = list(clf.class_names_)
    assert found.confusion.tolist() == theirs.confusion_matrix(names, predicted, labels=labels).tolist()
    report = theirs.classification_report(names, predicted, output_dict=True, zero_division=0)
    for one in found.class_scores:
        own = report[one.name]
        assert (one.images, one.precision, one.recall, one.f1) == pytest.approx(
            (own["support"], own["precision"], own["recall"], own["f1-score"])
        )
    own = report["macro avg"]
    expected = {"precision": own["precision"], "recall": own["recall"], "f1": own["f1-score"]}
    assert found.macro == pytest.approx(expected)
    zero = handful.ZeroShot(mini).fit(class_names=clf.class_names_)
    assert found.zero_shot == zero.score(held_out)
    assert found.plain.gain == pytest.approx(found.accuracy - found.zero_shot)


def test_errors_are_the_images_that_are_wrong(found: Evaluation, model: Path, held_out: handful.ImageSet):
    clf = handful.load(model)
    predicted, shares = clf.predict(held_out), clf.predict_proba(held_out)
    names = np.array(held_out.class_names)[held_out.labels]
    wrong = {str(held_out.items[row]): row for row in np.flatnonzero(predicted != names)}
    assert {one.image for one in found.errors} == set(wrong)
    assert [one.probability for one in found.errors] == sorted(
        (one.probability for one in found.errors), reverse=True
    )
    for one in found.errors:
        row = wrong[one.image]
        assert (one.truth, one.predicted) == (names[row], predicted[row])
        assert one.probability == pytest.approx(shares[row].max())
        assert one.truth_probability == pytest.approx(shares[row, list(clf.classes_).index(one.truth)])
    worst = found.confusions[0]
    assert worst.images == max(one.images for one in found.confusions) >= 1
    assert sum(one.images for one in found.confusions) == len(found.errors)
    assert worst.images == sum(
        (one.truth, one.predicted) == (worst.truth, worst.predicted) for one in found.errors
    )


def test_on_unequal_classes_the_balanced_figure_comes_first(
    digits: Path, model: Path, call: Call, tmp_path: Path
):
    data = unequal(digits, (30, 3, 3), tmp_path / "data")
    code, text, _ = call("evaluate", model, data)
    lines = text.splitlines()
    assert code == 0 and "3 to 30 images of a class" in lines[0]
    assert lines[1].startswith("balanced accuracy") and lines[2].startswith("accuracy")
    assert "2 classes with fewer than 10 test images, whose figures are rough: eight 3, nine 3." in text
    assert "7 of 10 classes have no test image" in text
    facts = json.loads(call("evaluate", model, data, "--json")[1])
    assert facts["balanced_accuracy"] == pytest.approx(np.mean(list(facts["per_class"].values())))
    assert facts["images_per_class"] == [3, 30]
    assert facts["accuracy"] != facts["balanced_accuracy"]
    low, high = facts["intervals"]["balanced_accuracy"]
    narrow, wide = facts["intervals"]["accuracy"]
    assert high - low > wide - narrow  # three images of a class say little
    for name in ("accuracy", "zero_shot", "balanced_accuracy", "balanced_zero_shot"):
        assert facts["intervals"][name][0] <= facts[name] <= facts["intervals"][name][1]


def test_intervals():
    assert metrics.interval(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)  # Wilson, worked by hand
    assert metrics.interval(1.0, 20) == pytest.approx((0.8389, 1.0), abs=1e-4)
    assert metrics.interval(0.0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    low, high = metrics.gain_interval(0.0, 0.0, 20)
    assert -0.1 > low > -0.2 and high == pytest.approx(-low)  # no difference seen is not certainty of none
    assert metrics.gain_interval(0.3, 0.0, 100)[0] > 0.2
    right = np.array([True] * 3 + [False])
    same = metrics.beside(right, right, np.array([0, 0, 0, 1]))
    assert (same.accuracy, same.gain) == (0.5, 0)
    assert same.accuracy_interval == metrics.interval(0.5, 3.0)  # 4 / (1/3 + 1)


@pytest.mark.parametrize("counts", [(10,) * 10, (100, 3, 3), (5, 5)])
def test_intervals_cover_the_truth(counts: tuple[int, ...]):
    """Of 600 test sets drawn, about 95 in 100 have the true balanced accuracy and gain inside."""
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(len(counts)), counts)
    inside = np.zeros(2)
    for _ in range(600):
        kind = rng.choice(4, size=len(truth), p=[0.65, 0.2, 0.05, 0.1])  # both, one, other, neither
        found = metrics.beside(kind < 2, (kind == 0) | (kind == 2), truth)
        low, high = found.accuracy_interval
        worse, better = found.gain_interval
        inside += low <= 0.85 <= high, worse <= 0.15 <= better
    assert (inside / 600 > 0.91).all()


# -- two classes -----------------------------------------------------------------------------------


def test_two_classes_have_sensitivity_specificity_and_auc(
    digits: Path, mini: handful.Backbone, tmp_path: Path
):
    train = handful.ImageSet.from_folder(unequal(digits, (5, 5, 0), tmp_path / "train"))
    test = handful.ImageSet.from_folder(digits / "test", verify=False)
    test = test.of_classes([test.class_names.index(name) for name in ("three", "eight")])
    clf = handful.LinearProbe(mini).fit(train)
    assert clf.class_names_ == ("eight", "three")
    found = evaluate(clf, test)
    truth = np.array(test.class_names)[test.labels]
    predicted, shares = clf.predict(test), clf.predict_proba(test)
    assert found.binary is not None and found.binary.positive == "three"  # the greater label, as scikit-learn
    assert found.binary.sensitivity == theirs.recall_score(truth, predicted, pos_label="three")
    assert found.binary.specificity == theirs.recall_score(truth, predicted, pos_label="eight")
    assert found.binary.auc == pytest.approx(theirs.roc_auc_score(truth == "three", shares[:, 1]))
    other = evaluate(clf, test, positive="Eight").binary
    assert other is not None and other.positive == "eight"
    assert (other.sensitivity, other.specificity) == (found.binary.specificity, found.binary.sensitivity)
    only = evaluate(clf, test[test.labels == 0]).binary
    assert only is not None and only.specificity is None and only.auc is None
    with pytest.raises(handful.ParameterError, match="positive='nine', expected a class of this classifier"):
        evaluate(clf, test, positive="nine")


def test_one_of_many_classes_against_the_rest(found: Evaluation, model: Path, held_out: handful.ImageSet):
    assert found.binary is None
    one = evaluate(handful.load(model), held_out, positive="six").binary
    assert one is not None and one.sensitivity == found.per_class["six"]
    assert one.auc is not None and one.auc > 0.9


# -- images that it has seen -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "clf",
    [
        handful.LinearProbe(), handful.TipAdapter(selection="support"),
        handful.TipAdapterF(epochs=1, views=2), handful.CoOp(epochs=1, views="online", length=2),
        handful.MMA(epochs=1, views=0, width=4), handful.FineTuning(epochs=1, views=0),
    ],
    ids=lambda clf: type(clf).__name__,
)  # fmt: skip
def test_images_it_learned_from_are_found(
    clf: handful.FewShotClassifier, tiny: handful.Backbone, support: handful.ImageSet,
    held_out: handful.ImageSet, tmp_path: Path,
):  # fmt: skip
    some = support[::4]
    clf.set_params(backbone=tiny).fit(some)
    again = handful.load(clf.save(tmp_path / "model"), tiny)
    seen = evaluate(again, some).seen
    assert seen is not None and (seen.support, seen.others, seen.accuracy_on_others) == (10, 0, None)
    new = evaluate(again, held_out[:20])
    assert new.seen is not None and (new.seen.images, new.seen.others) == (0, 20)
    assert not any("has seen" in note for note in new.notes)


def test_a_copy_a_link_and_pixels_are_the_image_and_another_format_is_not(
    mini: handful.Backbone, support: handful.ImageSet, tmp_path: Path
):
    path = Path(str(support.items[0]))
    name = support.class_names[support.labels[0]]
    clf = handful.TipAdapter(mini).fit(support)

    def count(item: object) -> int:
        found = evaluate(clf, [item, support.items[1]], [name, name]).seen  # type: ignore[list-item]
        assert found is not None
        return found.support - 1

    shutil.copy(path, tmp_path / "copy.png")
    (tmp_path / "link.png").symlink_to(path)
    Image.open(path).save(tmp_path / "again.bmp")
    assert count(tmp_path / "copy.png") == count(str(tmp_path / "link.png")) == 1
    assert count(tmp_path / "again.bmp") == 0
    pixels = [np.asarray(Image.open(item).convert("RGB")) for item in support.items[:2]]
    clf = handful.TipAdapter(mini).fit(pixels, ["a", "b"])
    seen = evaluate(clf, [Image.fromarray(pixel) for pixel in pixels], ["a", "b"]).seen
    assert seen is not None and seen.support == 2


def test_some_images_are_seen(model: Path, support: handful.ImageSet, held_out: handful.ImageSet):
    clf = handful.load(model)
    labels = [*(support.class_names[row] for row in support.labels[:3]),
              *(held_out.class_names[row] for row in held_out.labels[:7])]  # fmt: skip
    found = evaluate(clf, [*support.items[:3], *held_out.items[:7]], labels)
    assert found.seen is not None and (found.seen.support, found.seen.others) == (3, 7)
    assert found.seen.accuracy_on_others == clf.score(held_out[:7])
    assert found.notes[0].startswith("The classifier has seen 3 of these 10 images: 3 that it learned from.")
    assert "On the 7 others" in found.notes[0]


@pytest.mark.parametrize("selection", ["val", "oracle"])
def test_images_that_parameters_were_chosen_on_are_seen(
    selection: str, mini: handful.Backbone, support: handful.ImageSet, held_out: handful.ImageSet
):
    clf = handful.TipAdapter(mini, selection=selection).fit(support, validation=held_out[:20])
    seen = evaluate(clf, held_out[10:30]).seen
    assert seen is not None and (seen.support, seen.validation, seen.others) == (0, 10, 10)
    plain = handful.TipAdapter(mini).fit(support, validation=held_out[:20])  # which it did not look at
    seen = evaluate(plain, held_out[10:30]).seen
    assert seen is not None and seen.images == 0


def test_images_that_came_and_went(
    mini: handful.Backbone, support: handful.ImageSet, held_out: handful.ImageSet
):
    clf = handful.TipAdapter(mini).fit(support)
    name = held_out.class_names[0]
    more = held_out[held_out.labels == 0]
    clf.add_images(name, list(more.items))

    def count(images: handful.ImageSet) -> int:
        seen = evaluate(clf, images, other_classes="skip").seen
        assert seen is not None
        return seen.support

    assert (count(more), count(support)) == (len(more), len(support))
    clf.remove_class(name).add_class(name)
    assert (count(more), count(support)) == (0, len(support) - np.sum(support.labels == 0))


def test_zero_shot_and_older_classifiers_say_nothing(
    model: Path, mini: handful.Backbone, support: handful.ImageSet, tmp_path: Path
):
    zero = handful.ZeroShot(mini).fit(support)
    assert evaluate(zero, support).seen is None
    clf = handful.load(model)
    clf.fitted_ = replace(clf.fitted_, digests={})
    old = handful.load(clf.save(tmp_path / "old"))
    assert "digests" not in json.loads((tmp_path / "old" / "head.json").read_text())
    found = evaluate(old, support)
    assert found.seen is None and not any("has seen" in note for note in found.notes)
    old.add_images(support.class_names[0], support.items[0])  # from here on this one is known
    seen = evaluate(old, support).seen
    assert seen is not None and seen.support == 1


@pytest.mark.parametrize("digests", [[], {"support": 5}, {"support": [1]}, {"validation": "abc"}])
def test_damaged_digests_are_refused(digests: object, model: Path, tmp_path: Path):
    shutil.copytree(model, tmp_path / "model")
    path = tmp_path / "model" / "head.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"digests": digests}))
    with pytest.raises(handful.CheckpointError, match="digests"):
        handful.load(tmp_path / "model")


def test_a_score_on_seen_images_is_marked(model: Path, support: handful.ImageSet, call: Call, tmp_path: Path):
    shutil.copytree(model, tmp_path / "model")
    table = tmp_path / "t.csv"
    rows = [
        f"{item},{support.class_names[row]}" for item, row in zip(support.items, support.labels, strict=True)
    ]
    table.write_text("\n".join(["path,label", *rows]))
    code, text, _ = call("evaluate", tmp_path / "model", table, "--record")
    assert code == 0
    assert "note: The classifier has seen 40 of these 40 images" in text
    assert "These figures say nothing of new images" in text
    score = handful.load(tmp_path / "model").fitted_.scores[0]
    assert score["seen"] == 40 and "balanced_accuracy" in score
    card = (tmp_path / "model" / "README.md").read_text()
    assert "says little of new images**: the classifier had seen 40 of these 40 images" in card


# -- classes that it does not know, and images of no class -----------------------------------------


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


def test_more_classes_are_refused_left_out_or_of_no_class(model: Path, with_more: Path, call: Call):
    code, text, err = call("evaluate", model, with_more)
    assert (code, text) == (1, "")
    assert "Got 2 classes that this classifier does not know: ['ten', 'unknown']" in err
    assert "--on-error skip" in err and "--unknown auto" in err
    code, text, _ = call("evaluate", model, with_more, "--on-error", "skip")
    assert (
        code == 0
        and "note: 5 images of classes that the classifier does not know left out: ten 1, unknown 4." in text
    )
    code, text, _ = call("evaluate", model, with_more, "--on-error", "skip", "--unknown", "auto", "--json")
    facts = json.loads(text)
    assert (facts["images"], facts["left_out"], facts["unknown"]["unknown"]) == (60, {}, 5)
    assert facts["unknown"]["found"] == 1.0  # noise looks like no digit


def test_nothing_but_other_classes_is_refused(model: Path, two_classes: Path, call: Call):
    for words in ([], ["--on-error", "skip"], ["--on-error", "skip", "--unknown", "auto"]):
        code, _, err = call("evaluate", model, two_classes, *words)
        assert code == 1 and "It knows none of these" in err


def test_images_of_no_class_measure_the_rule(model: Path, held_out: handful.ImageSet, two_classes: Path):
    clf = handful.load(model)
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
    model: Path, two_classes: Path, few_digits: Path, call: Call
):
    (two_classes / "lamp" / "deep").mkdir()
    next(two_classes.glob("lamp/*.png")).rename(two_classes / "lamp" / "deep" / "ünter.png")
    shutil.copy(next(two_classes.glob("lamp/*.png")), two_classes / "flat.png")
    (two_classes / "Thumbs.db").write_bytes(b"x"), (two_classes / "lamp" / ".DS_Store").write_bytes(b"x")
    words = ["evaluate", model, few_digits / "test", "--unknown-folder", two_classes]
    code, text, err = call(*words)
    assert code == 0 and "images of no class, 7 of 7 files used" in err
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
        (few_digits.parent / "void", "at least one"),
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


# -- what is written ---------------------------------------------------------------------------------


def test_errors_are_written(model: Path, few_digits: Path, call: Call, tmp_path: Path):
    files = [tmp_path / "new" / f"errors.{form}" for form in ("json", "csv", "png")]
    words = [word for file in files for word in ("--errors", file)]
    code, text, err = call("evaluate", model, few_digits / "test", *words, "--json")
    facts = json.loads(text)
    assert code == 0 and len(facts["errors"]) == sum(sum(row) for row in facts["confusion"]) - sum(
        facts["confusion"][place][place] for place in range(10)
    )
    assert json.loads(files[0].read_text()) == facts["errors"]
    rows = list(csv.DictReader(io.StringIO(files[1].read_text())))
    assert [row["image"] for row in rows] == [one["image"] for one in facts["errors"]]
    assert [float(row["probability"]) for row in rows] == [one["probability"] for one in facts["errors"]]
    with Image.open(files[2]) as sheet:
        assert sheet.format == "PNG" and sheet.width > 1000
    assert err.count("images that are classified wrongly") == 3


@pytest.mark.parametrize("name", ["errors", "errors.txt", "errors.jpg"])
def test_another_form_is_refused_before_anything_is_read(name: str, call: Call):
    code, _, err = call("evaluate", "nowhere", "nowhere", "--errors", name)
    assert code == 1 and ".json, .csv or .png" in err


def test_errors_that_cannot_be_written_lose_no_answer(
    model: Path, few_digits: Path, call: Call, tmp_path: Path
):
    (tmp_path / "file").write_text("")
    code, text, err = call("evaluate", model, few_digits / "test", "--errors", tmp_path / "file" / "e.json")
    assert code == 1 and "Can't write" in err and "balanced accuracy" in text


def test_each_class_has_a_line_where_it_is_asked_for(model: Path, few_digits: Path, call: Call, monkeypatch):
    from handful.report import scores

    assert "recall %" in call("evaluate", model, few_digits / "test")[1]
    monkeypatch.setattr(scores, "TABLE_UP_TO", 9)
    text = call("evaluate", model, few_digits / "test")[1]
    assert "recall %" not in text and "worst classes: " in text
    assert "recall %" in call("evaluate", model, few_digits / "test", "--per-class")[1]

"""What an evaluation says beside accuracy: intervals, each class, what is wrong and confused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as theirs

import handful
from handful import metrics
from handful.evaluation import Evaluation, evaluate
from handful.evaluation.notes import notes_on

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def found(calibrated: Path, held_out: handful.ImageSet) -> Evaluation:
    return evaluate(handful.load(calibrated), held_out)


def unequal(digits: Path, counts: tuple[int, ...], target: Path) -> Path:
    """Link images of three classes."""
    for name, count in zip(("three", "eight", "nine"), counts, strict=True):
        for file in sorted((digits / "test" / name).iterdir())[:count]:
            place = target / name / file.name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(file)
    return target


def test_measures_are_those_of_scikit_learn(
    found: Evaluation, calibrated: Path, held_out: handful.ImageSet, mini: handful.Backbone
):
    clf = handful.load(calibrated)
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


def test_errors_are_the_images_that_are_wrong(
    found: Evaluation, calibrated: Path, held_out: handful.ImageSet
):
    clf = handful.load(calibrated)
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


def test_sets_are_measured_on_the_images(
    found: Evaluation,
    calibrated: Path,
    held_out: handful.ImageSet,
    few_digits: Path,
    tmp_path: Path,
    call: Call,
):
    clf = handful.load(calibrated)
    mask, one = clf.predict_set_mask(held_out), found.sets
    covered = mask[np.arange(len(mask)), held_out.labels]
    assert (one.stated, one.by) == (0.9, "all")
    assert (
        one.coverage == covered.mean() and one.coverage_interval[0] < one.coverage < one.coverage_interval[1]
    )
    own = [covered[held_out.labels == row].mean() for row in range(10)]
    assert one.balanced_coverage == pytest.approx(np.mean(own))
    sizes = mask.sum(1)
    assert (one.size, one.singletons, one.empty) == (sizes.mean(), (sizes == 1).mean(), (sizes == 0).mean())
    test = few_digits / "test"
    code, text, _ = call("evaluate", calibrated, test, "--coverage", "0.8", "--json")
    facts = json.loads(text)["sets"]
    assert code == 0 and facts["stated"] == 0.8 and facts["size"] < one.size
    text = call("evaluate", calibrated, test)[1]
    assert "sets at 90.00 %: the class is in" in text and "classes on average" in text
    code, _, err = call("evaluate", calibrated, test, "--coverage", "0.99")
    assert code and "it takes 99" in err
    code, _, err = call("evaluate", calibrated, test, "--by", "class", "--coverage", "0.9")
    assert code and "it takes 9 of each" in err
    notes = [note for note in found.notes if note.startswith("Sets hold")]
    assert bool(notes) == (found.sets.balanced_coverage_interval[1] < 0.9)
    strict = replace(found.sets, balanced_coverage_interval=(0.7, 0.89), balanced_coverage=0.8)
    (note,) = notes_on(found.class_scores, 10, None, None, {}, found.balanced, strict)[:1]
    assert note.startswith("Sets hold the class of 80.0 % of these images, fewer than the stated 90 %")
    plain = handful.ZeroShot("mini").fit(class_names=clf.class_names_).save(tmp_path / "plain")
    code, text, _ = call("evaluate", plain, test, "--json")
    assert code == 0 and json.loads(text)["sets"] is None
    assert "not calibrated" in call("evaluate", plain, test, "--coverage", "0.9")[2]


def test_on_unequal_classes_the_balanced_figure_comes_first(
    digits: Path, calibrated: Path, call: Call, tmp_path: Path
):
    data = unequal(digits, (30, 3, 3), tmp_path / "data")
    code, text, _ = call("evaluate", calibrated, data)
    lines = text.splitlines()
    assert code == 0 and "3 to 30 images of each" in lines[0]
    assert lines[1].startswith("balanced accuracy") and lines[2].startswith("accuracy")
    assert "2 classes have fewer than 10 test images, too few for exact figures: eight 3, nine 3." in text
    assert "7 of 10 classes have no test image" in text
    facts = json.loads(call("evaluate", calibrated, data, "--json")[1])
    assert facts["balanced_accuracy"] == pytest.approx(np.mean(list(facts["per_class"].values())))
    assert facts["images_per_class"] == [3, 30]
    assert facts["accuracy"] != facts["balanced_accuracy"]
    low, high = facts["intervals"]["balanced_accuracy"]
    narrow, wide = facts["intervals"]["accuracy"]
    assert high - low > wide - narrow  # three images of a class say little
    for name in ("accuracy", "zero_shot", "balanced_accuracy", "balanced_zero_shot"):
        assert facts["intervals"][name][0] <= facts[name] <= facts["intervals"][name][1]


def test_a_classifier_that_is_worse_than_zero_shot_is_said(
    digits: Path, mini: handful.Backbone, tmp_path: Path
):
    """It is fitted on images of other digits than their labels say."""
    test = handful.ImageSet.from_folder(unequal(digits, (20, 20, 20), tmp_path / "data"), verify=False)
    wrong = replace(test, labels=(np.asarray(test.labels) + 1) % 3)
    clf = handful.LinearProbe(mini).fit(wrong[::7])
    assert any(
        note.startswith("Zero-shot, which needs no image, is better") for note in evaluate(clf, test).notes
    )
    same = handful.ZeroShot(mini).fit(class_names=test.class_names)
    assert evaluate(same, test).notes == ()


def test_intervals():
    assert metrics.interval(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)  # Wilson, worked by hand
    assert metrics.interval(1.0, 20) == pytest.approx((0.8389, 1.0), abs=1e-4)
    assert metrics.interval(1.0, 50)[1] == 1 and metrics.interval(0.0, 50)[0] == 0
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


def test_one_of_many_classes_against_the_rest(
    found: Evaluation, calibrated: Path, held_out: handful.ImageSet
):
    assert found.binary is None
    one = evaluate(handful.load(calibrated), held_out, positive="six").binary
    assert one is not None and one.sensitivity == found.per_class["six"]
    assert one.auc is not None and one.auc > 0.9

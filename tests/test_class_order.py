"""One order of classes everywhere, sorted as scikit-learn sorts, whatever the order of the names given."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from toys import toy

import handful
from handful.evaluation.answers import ask, zero_shot_beside
from handful.export import facts_of, preprocessing
from handful.protocols import answer
from handful.serve import classifiers as served

GIVEN = ["red panda", "cat", "dog"]
SORTED = ("cat", "dog", "red panda")
ORDER = [1, 2, 0]
"""Which of the given names each sorted one is."""


def turned(
    clf: handful.FewShotClassifier, form: str = "integers", **more: object
) -> handful.FewShotClassifier:
    """Fit with names and class weights in the order of `GIVEN`."""
    features, labels, text = toy(noise=0.3)
    marks = labels if form == "integers" else np.array(GIVEN)[labels]
    return clf.fit(features, marks, class_names=GIVEN, class_weights=text, **more)


@pytest.mark.parametrize("form", ["integers", "names"])
@pytest.mark.parametrize(
    "method", ["auto", "zero-shot", "linear-probe", "logistic-probe", "gda", "kernel-ridge", "tip-adapter"]
)
def test_columns_are_sorted_whatever_the_order_of_the_names(method: str, form: str, tmp_path: Path):
    features, labels, text = toy(noise=0.3)
    names = np.array(GIVEN)[labels]
    clf = turned(handful.METHODS[method](), form)
    plain = handful.METHODS[method]().fit(features, names, class_weights=text[ORDER])
    np.testing.assert_allclose(clf.logits(features), plain.logits(features), rtol=1e-4, atol=1e-4)
    assert clf.classes_.tolist() == list(clf.class_names_) == list(SORTED)
    assert clf.predict(features).tolist() == plain.predict(features).tolist()
    clf.save(tmp_path / "clf")
    for one in (clf, handful.load(tmp_path / "clf")):
        assert one.score(features, labels) == one.score(features, names) > 0.8
        assert one.calibrate(features, labels, folds=2, class_weights=text).calibration_.images == 12
        columns = one.predict_proba(features).argmax(1)
        assert one.classes_[columns].tolist() == one.predict(features).tolist()


def test_integer_labels_are_rows_of_the_names_as_given(tmp_path: Path):
    """In validation images as well; class weights are, too."""
    features, labels, _ = toy(8, noise=0.3)
    names = np.array(GIVEN)[labels]
    for seen in (labels, names, names.astype(object)):
        clf = turned(handful.TipAdapter(selection="val"), validation=(features, seen))
        assert (
            clf.selected_
            == turned(handful.TipAdapter(selection="val"), validation=(features, labels)).selected_
        )
    with pytest.raises(handful.DataError, match="validation labels from 0 to 3"):
        turned(handful.TipAdapter(selection="val"), validation=(features, labels + (labels > 1)))


def test_classes_come_and_go_in_their_place():
    features, labels, _ = toy(noise=0.3)
    clf = turned(handful.TipAdapter())
    clf.add_class("cow", features[:2], class_weight=np.ones(16))
    assert clf.classes_.tolist() == list(clf.class_names_) == ["cat", "cow", "dog", "red panda"]
    assert clf.shots_ == (4, 2, 4, 4) and clf.head_.support.labels.bincount().tolist() == [4, 2, 4, 4]
    assert (
        clf.score(features[2:], labels[2:]) > 0.8
    )  # integers mean what they meant: rows of the names as given
    assert clf.score(features[:2], [3, 3]) == clf.score(features[:2], ["cow", "cow"])
    clf.remove_class("cow")
    assert clf.class_names_ == SORTED
    np.testing.assert_allclose(
        clf.logits(features), turned(handful.TipAdapter()).logits(features), rtol=1e-4, atol=1e-4
    )
    integers = handful.TipAdapter().fit(features, labels + 5, class_weights=toy(noise=0.3)[2])
    with pytest.raises(handful.DataError, match="answers with integers"):
        integers.add_class("cow", class_weight=np.ones(16))
    assert integers.add_images("5", features[:1]).remove_class("6").classes_.tolist() == [5, 7]
    assert set(integers.predict(features).tolist()) == {5, 7}


def test_other_names_are_sorted_too(mini: handful.Backbone, support: handful.ImageSet, tmp_path: Path):
    zero = handful.ZeroShot(mini).fit(class_names=["owl", "cat"])
    clf = zero.with_classes(["lamp", "cup_of_tea"])
    assert clf.classes_.tolist() == ["cup_of_tea", "lamp"] and clf.class_names_ == ("cup of tea", "lamp")
    clf.save(tmp_path / "clf")
    again = handful.load(tmp_path / "clf", mini)
    assert again.classes_.tolist() == ["cup_of_tea", "lamp"]
    assert again.score(support.items[:2], [0, 1]) == again.score(support.items[:2], ["lamp", "cup of tea"])
    images = handful.ImageSet(support.items[:2], np.array([0, 1]), ("owl", "cat"))
    np.testing.assert_allclose(
        np.diff(answer(zero, images))[:, 0], -zero.decision_function(images), rtol=1e-3, atol=1e-4
    )


def test_what_is_shown_is_in_the_same_order(mini: handful.Backbone, support: handful.ImageSet):
    """Whatever serves, explains, measures or exports reads the names by the rows of the head."""
    order = list(reversed(support.class_names))
    labels = [support.class_names[row] for row in support.labels]
    clf = handful.TipAdapter(mini).fit(support.items, labels, class_names=order)
    assert clf.class_names_ == support.class_names
    row, image = 7, support.items[support.labels.tolist().index(7)]
    name, probabilities = support.class_names[row], clf.predict_proba(image)[0]
    assert probabilities.argmax() == row and clf.explain(image).predicted == name
    assert served.describe(clf)["classes"] == list(support.class_names)
    prediction = served.predict("clf", clf, handful.encode(mini, [image]).pooled())[0]
    assert served.best_classes(clf, prediction, 1)[0][0] == name
    assert json.loads(facts_of(clf, preprocessing(mini))["class_names"]) == order[::-1]
    found = ask(clf, support.items, zero_shot_beside(clf))
    for predicted in (found.predicted, found.zero_shot):
        assert (predicted == support.labels).mean() > 0.6


def test_encoded_integers_are_shown_by_their_names(
    mini: handful.Backbone, support: handful.ImageSet, tmp_path: Path
):
    some = support.of_classes([7, 2])
    clf = handful.TipAdapter(mini, class_names=some.class_names).fit(some.items, 1 - some.labels)
    clf.save(tmp_path / "clf")
    for one in (clf, handful.load(tmp_path / "clf", mini)):
        assert one.classes_.tolist() == [0, 1] and list(one.class_names_) == sorted(some.class_names)
        assert one.explain(some.items[0]).predicted == some.class_names[some.labels[0]]
        assert served.describe(one)["classes"] == sorted(some.class_names)
        assert one.score(some) == one.score(some.items, 1 - some.labels) == 1


def test_what_an_older_version_saved_keeps_its_order(tmp_path_factory: pytest.TempPathFactory):
    """Its rows are those of its file: `classes_` is not sorted, and every column is in that order."""
    saved = Path(__file__).parent / "saved"
    sys.path.insert(0, str(saved))
    from make import NAMES, frozen_backbone, pictures

    backbone = frozen_backbone(tmp_path_factory.mktemp("frozen"))
    clf = handful.load(saved / "tip-adapter", backbone)
    assert clf.classes_.tolist() == list(clf.class_names_) == NAMES
    images = handful.ImageSet(tuple(pictures(7, 4)), np.array([0, 1, 2, 0]), tuple(NAMES))
    found = ask(clf, images.items, zero_shot_beside(clf))
    np.testing.assert_array_equal(found.predicted, clf.logits(images).argmax(1))
    fresh = handful.ZeroShot(backbone).fit(class_names=NAMES)
    np.testing.assert_array_equal(found.zero_shot, fresh.logits(images)[:, fresh.match(NAMES)].argmax(1))
    clf.add_class("newt", pictures(9, 1))
    assert clf.classes_.tolist() == sorted([*NAMES, "newt"])

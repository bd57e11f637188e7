"""What scikit-learn does with a classifier: scorers, searches, meta-estimators; on paths and on features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import sklearn
from sklearn import model_selection as select
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import BaggingClassifier, StackingClassifier, VotingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import handful

TURNED = ["zero", "six", "eight"]
"""Names in another order than scikit-learn's."""


class Data:
    """Images and string labels, as paths or as features `[N, E]`."""

    def __init__(self, images: handful.ImageSet, x: Any) -> None:
        self.x, self.y = x, np.array(images.class_names)[images.labels]
        self.names = [name for name in TURNED if name in self.y]


@pytest.fixture(
    scope="module", params=[("paths", 2), ("paths", 3), ("features", 2), ("features", 3)], ids=str
)
def data(request: pytest.FixtureRequest, mini: handful.Backbone, support: handful.ImageSet) -> Data:
    form, classes = request.param
    rows = sorted(support.class_names.index(name) for name in TURNED[-classes:])
    images = support.of_classes(rows)
    if form == "paths":
        return Data(images, np.array(list(map(str, images.items))))
    return Data(images, handful.encode(mini, images).values[:, 0].numpy())


@pytest.fixture
def clf(data: Data, mini: handful.Backbone) -> handful.FewShotClassifier:
    """A classifier that keeps its class names, in another order than scikit-learn encodes them."""
    return handful.TipAdapter(mini, class_names=data.names)


def vote(clf: Any, **more: Any) -> VotingClassifier:
    return VotingClassifier([("one", clf), ("other", clone(clf).set_params(alpha=2.0))], **more)


USES: dict[str, Callable[[Any], Any]] = {
    "stacking": lambda clf: StackingClassifier([("one", clf)], LogisticRegression(), cv=2),
    "stacking-logits": lambda clf: StackingClassifier(
        [("one", clf)], LogisticRegression(), cv=2, stack_method="decision_function"
    ),
    "voting-hard": vote,
    "voting-soft": lambda clf: vote(clf, voting="soft"),
    **{
        f"calibrated-{method}": lambda clf, method=method: CalibratedClassifierCV(clf, method=method, cv=2)
        for method in ("sigmoid", "isotonic", "temperature")
    },
    "calibrated-together": lambda clf: CalibratedClassifierCV(
        clf, method="temperature", cv=2, ensemble=False
    ),
    "grid": lambda clf: select.GridSearchCV(clf, {"alpha": [0.5, 1.0]}, cv=2, scoring="f1_macro"),
    "random": lambda clf: select.RandomizedSearchCV(clf, {"alpha": [0.5, 1.0]}, n_iter=2, cv=2),
    "pipeline": lambda clf: make_pipeline(FunctionTransformer(), clf),
    "features-of": lambda clf: make_pipeline(clf, LogisticRegression()),
}  # fmt: skip


@pytest.mark.parametrize("use", USES)
def test_meta_estimators_take_string_labels(use: str, clf: handful.FewShotClassifier, data: Data):
    found = USES[use](clf).fit(data.x, data.y)
    assert found.score(data.x, data.y) == 1
    assert list(found.classes_) == sorted(data.names)


SCORES = ("accuracy", "balanced_accuracy", "f1_macro", "roc_auc", "roc_auc_ovr", "neg_log_loss")


@pytest.mark.parametrize("scoring", [None, *SCORES])
def test_scorers(scoring: str | None, clf: handful.FewShotClassifier, data: Data):
    if scoring == "roc_auc" and len(data.names) > 2:
        scoring = "roc_auc_ovo"
    found = select.cross_val_score(clf, data.x, data.y, cv=2, scoring=scoring, error_score="raise")
    assert found.min() >= (-0.2 if scoring == "neg_log_loss" else 0.9)


def test_cross_val_predict(clf: handful.FewShotClassifier, data: Data):
    two = len(data.names) == 2
    classes = np.unique(data.y)
    names, probabilities, logits = (
        select.cross_val_predict(clf, data.x, data.y, cv=2, method=method)
        for method in ("predict", "predict_proba", "decision_function")
    )
    assert names.tolist() == data.y.tolist()
    assert classes[probabilities.argmax(1)].tolist() == data.y.tolist()
    assert logits.shape == (len(data.y), *([] if two else [3]))
    rows = (logits > 0).astype(int) if two else logits.argmax(1)
    assert classes[rows].tolist() == data.y.tolist()
    assert log_loss(data.y, probabilities) < 0.1


def test_the_sigmoid_of_the_decision_is_the_probability(clf: handful.FewShotClassifier, data: Data):
    clf.fit(data.x, data.y)
    logits, probabilities = clf.logits(data.x), clf.predict_proba(data.x)
    assert logits.shape == probabilities.shape == (len(data.y), len(data.names))
    found = clf.decision_function(data.x)
    if len(data.names) > 2:
        np.testing.assert_array_equal(found, logits)
        return
    np.testing.assert_allclose(1 / (1 + np.exp(-found)), probabilities[:, 1], rtol=1e-5)
    assert roc_auc_score(data.y == clf.classes_[1], found) == 1


def test_permutations_and_learning_curves(clf: handful.FewShotClassifier, data: Data):
    score, others, _ = select.permutation_test_score(clf, data.x, data.y, n_permutations=2, cv=2)
    assert score == 1 >= others.max()
    curve = select.learning_curve(
        clf, data.x, data.y, cv=2, train_sizes=[0.5, 1.0], shuffle=True, error_score="raise"
    )
    assert curve[2].mean() > 0.6


def test_a_fitted_one_may_be_frozen(clf: handful.FewShotClassifier, data: Data):
    clf.fit(data.x, data.y)
    calibrated = CalibratedClassifierCV(FrozenEstimator(clf), cv=2).fit(data.x, data.y)
    assert calibrated.score(data.x, data.y) == 1
    with pytest.raises(NotFittedError, match="is not fitted"):
        clone(clf).predict(data.x)


def test_encoded_labels_are_answered_with_integers(clf: handful.FewShotClassifier, data: Data):
    encoded = np.searchsorted(np.unique(data.y), data.y)
    clf.fit(data.x, encoded)
    assert clf.predict(data.x).tolist() == encoded.tolist() and clf.score(data.x, encoded) == 1
    assert clf.classes_.tolist() == list(range(len(data.names)))
    assert clf.class_names_ == tuple(sorted(data.names))
    assert clf.get_params()["class_names"] == data.names
    assert "0 is 'eight'" in clf.notes_[0]  # for somebody whose integers are numbers of their own
    assert clf.score(data.x, data.y) == 1  # names are known beside
    assert not clf.set_params(class_names=sorted(data.names)).fit(data.x, encoded).notes_


def test_encoded_labels_need_names(data: Data, mini: handful.Backbone):
    encoded = np.searchsorted(np.unique(data.y), data.y)
    with pytest.raises(handful.DataError, match=r"the parameter class_names of the estimator: class_names="):
        handful.TipAdapter(mini).fit(data.x, encoded)
    with pytest.raises(handful.DataError, match="expected names as labels"):
        handful.TipAdapter(mini, class_names=data.names).fit(data.x, encoded > 0)


# -- one class against others: the integers have no names ------------------------------------------


def test_one_class_against_the_rest(data: Data, mini: handful.Backbone, clf: handful.FewShotClassifier):
    probe = handful.LogisticProbe(mini, selection="fixed")
    assert OneVsRestClassifier(probe).fit(data.x, data.y).score(data.x, data.y) == 1
    if len(data.names) == 2:
        assert OneVsRestClassifier(clf).fit(data.x, data.y).score(data.x, data.y) == 1
        return
    with pytest.raises(handful.DataError, match=r"labels \[0, 1\] with class_names of 3 classes.*OneVsRest"):
        OneVsRestClassifier(clf).fit(data.x, data.y)


def test_one_class_against_one(data: Data):
    if data.x.ndim == 1:
        pytest.skip("scikit-learn checks that X is a table of numbers")
    probe = handful.LogisticProbe(selection="fixed")
    assert OneVsOneClassifier(probe).fit(data.x, data.y).score(data.x, data.y) == 1
    assert (
        BaggingClassifier(probe, n_estimators=2, random_state=0).fit(data.x, data.y).score(data.x, data.y)
        == 1
    )


def test_a_fold_without_a_class(data: Data, mini: handful.Backbone):
    """String labels say which class is missing; integers that scikit-learn made of them do not."""
    clf = handful.TipAdapter(mini, class_names=data.names)
    last = np.unique(data.y)[-1]
    fold = [(np.flatnonzero(data.y != last), np.flatnonzero(data.y == last))]
    clf.fit(data.x[fold[0][0]], data.y[fold[0][0]])
    assert clf.classes_.tolist() == sorted(data.names) and clf.shots_[-1] == 0
    assert clf.score(data.x[fold[0][1]], [last] * len(fold[0][1])) > 0.5
    if len(data.names) == 3:
        with pytest.raises(handful.DataError, match=r"expected all of 0 to 2"):
            clf.fit(data.x[:4], [0, 1, 0, 1])


# -- labels and images in other forms --------------------------------------------------------------


@pytest.mark.parametrize(
    "form",
    [list, tuple, lambda y: y.astype(object), lambda y: [np.str_(one) for one in y]],
    ids=["list", "tuple", "object", "str_"],
)
def test_labels_in_any_form(form: Callable[[Any], Any], data: Data, mini: handful.Backbone):
    x, y = form(data.x) if data.x.ndim == 1 else data.x.tolist(), form(data.y)
    clf = handful.TipAdapter(mini).fit(x, y)
    assert clf.classes_.tolist() == sorted(data.names) and clf.score(x, y) == 1


class Column:
    """A column that says how it becomes an array, and is indexed by labels of its own: pandas' Series."""

    def __init__(self, values: Any) -> None:
        self.values = np.asarray(values)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.values

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)

    def __getitem__(self, row: Any) -> Any:
        raise KeyError(row)

    def items(self) -> Any:
        raise AssertionError("a method of pandas' Series, no list of images")


def test_columns_of_a_table(data: Data, mini: handful.Backbone):
    x, y = Column(data.x), Column(data.y.astype(object))
    clf = handful.TipAdapter(mini).fit(x, y).calibrate(x, y, folds=2)
    assert clf.score(x, y) == 1 and clf.predict(x).tolist() == data.y.tolist()
    assert handful.TipAdapter(mini, selection="val").fit(x, y, validation=(x, y)).score(x, y) == 1
    if data.x.ndim == 1:
        assert clf.predict(Column(data.x[:, None])).tolist() == data.y.tolist()
        with pytest.raises(handful.DataError, match=r"no numbers.*give their column"):
            clf.predict(Column(np.stack([data.x, data.y], 1)))


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([False, True], [False, True]), ([3, 1], [1, 3]), ([1.0, 0.0], [0, 1]), ([10, 9], [9, 10]),
        (np.array([2, 1], np.uint8), [1, 2]), (np.array([2, 1], object), [1, 2]), ([-1, 1], [-1, 1]),
    ],
)  # fmt: skip
def test_integers_where_names_are_not_read(labels: Any, classes: list[Any]):
    x, y = np.eye(2, dtype=np.float32).repeat(3, 0), np.repeat(labels, 3)
    for method, given in ((handful.LogisticProbe, {}), (handful.TipAdapter, {"class_weights": np.eye(2)})):
        weights = {name: value[np.argsort(labels)] for name, value in given.items()}
        clf = method(selection="fixed").fit(x, y, **weights)
        assert clf.classes_.tolist() == classes and clf.predict(x).tolist() == y.tolist()
        assert clf.score(x, y) == 1 and (clf.decision_function(x) > 0).tolist() == (y == classes[1]).tolist()
        assert clf.calibrate(x, y, folds=2, **weights).score(x, y) == 1
        if -1 not in classes:
            assert set(clf.predict(x, unknown=1.5).tolist()) == {-1}


@pytest.mark.parametrize(
    "labels", [[0.5, 1.5], [None, "a"], ["a", 1], [np.nan, 1.0], [1j, 2j], [[1, 2], [3, 4]]]
)
def test_labels_that_are_none(labels: list[Any]):
    with pytest.raises(handful.DataError, match=r"[Gg]ot labels"):
        handful.LogisticProbe().fit(np.eye(2, dtype=np.float32), labels)


def test_labels_are_answered_as_they_were_written(mini: handful.Backbone):
    """Prompts have spaces for underscores; scikit-learn compares what `predict` gives with the labels."""
    x, y = np.eye(2, 256, dtype=np.float32).repeat(4, 0), np.repeat(["red_panda", "Lamp"], 4)
    clf = handful.TipAdapter(mini, alpha=100.0)
    assert select.cross_val_score(clf, x, y, cv=2, scoring="accuracy").mean() == 1
    clf.fit(x, y)
    assert clf.classes_.tolist() == ["Lamp", "red_panda"] and clf.class_names_ == ("Lamp", "red panda")
    assert clf.score(x, np.char.replace(y, "_", " ")) == 1
    assert (
        handful.TipAdapter(mini).fit(x, [*y[:-1], "lamp_"[:4].title()]).classes_.tolist()
        == clf.classes_.tolist()
    )


# -- the rest of the interface ---------------------------------------------------------------------


def test_a_score_is_refused_before_anything_is_predicted(clf: handful.FewShotClassifier, data: Data):
    clf.fit(data.x, data.y)
    clf.query = lambda images: pytest.fail("it predicted")  # type: ignore[method-assign, assignment]
    for labels, match in (
        (None, "without labels"),
        (data.y[:2], "one each"),
        (["zebra"] * len(data.y), "zebra"),
    ):
        with pytest.raises(handful.DataError, match=match):
            clf.score(data.x, labels)


def test_a_score_may_weigh_images(clf: handful.FewShotClassifier, data: Data):
    labels = [*data.y[:-1], data.y[0]]  # the last one is wrong
    clf.fit(data.x, data.y)
    weights = [1.0] * (len(labels) - 1) + [len(labels) - 1.0]
    assert clf.score(data.x, labels, sample_weight=weights) == pytest.approx(0.5)
    for bad in (
        [1.0],
        [-1.0] * len(labels),
        [0.0] * len(labels),
        ["a"] * len(labels),
        [np.nan] * len(labels),
    ):
        with pytest.raises(handful.DataError, match="sample_weight"):
            clf.score(data.x, labels, sample_weight=bad)


def test_features_have_a_width(mini: handful.Backbone, support: handful.ImageSet):
    clf = handful.TipAdapter(mini)
    assert not hasattr(clf, "n_features_in_")
    assert clf.fit(support).n_features_in_ == 256 == clf.transform(support).shape[1]
    inside = handful.MMA(mini, epochs=1, views=0, width=4).fit(support[support.labels < 2])
    assert not hasattr(inside, "n_features_in_")


def test_arguments_are_routed():
    """`class_weights` reach the fits of a search by scikit-learn's metadata routing."""
    x, y = np.eye(2, 4, dtype=np.float32).repeat(4, 0), np.repeat(["a", "b"], 4)
    weights = np.eye(2, 4)
    with sklearn.config_context(enable_metadata_routing=True):
        clf = handful.TipAdapter().set_fit_request(class_weights=True).set_score_request(sample_weight=True)
        search = select.GridSearchCV(clone(clf), {"alpha": [1.0, 2.0]}, cv=2, error_score="raise")
        assert search.fit(x, y, class_weights=weights, sample_weight=np.ones(8)).best_score_ == 1
        with pytest.raises(handful.ParameterError, match=r"one of .*class_weights"):
            clf.set_fit_request(sample_weight=True)

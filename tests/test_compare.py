"""Protocols, figures of merit, and the comparison inside a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import link_some

import handful
from handful.compare import compare, estimate, sensible
from handful.data import Dataset, ImageSet
from handful.estimator import Learned
from handful.evaluation import evaluate
from handful.heads import CosineHead
from handful.metrics import calibration_error, harmonic_mean
from handful.protocols import (
    answer,
    base_to_new,
    cross_category,
    cross_dataset,
    domain_shift,
    few_shot_draws,
    fit,
)

# -- protocols ------------------------------------------------------------------------------------


def test_base_to_new_cuts_after_the_draw(data: Dataset):
    (draw,) = base_to_new(data.part("train"), data.part("test"), (3,), (2,))
    whole = handful.few_shot(data.part("train"), 3, 2)
    assert draw.support.items == tuple(i for i, y in zip(whole.items, whole.labels, strict=True) if y < 5)
    assert draw.tests["base"].class_names + draw.tests["new"].class_names == data.part("test").class_names
    assert set(draw.tests["new"].labels) == set(range(5))


def test_cross_category_puts_easy_classes_first(data: Dataset, mini: handful.Backbone):
    (draw,) = cross_category(mini, data, (2,), (1,))
    assert len(draw.support.class_names) == 7
    assert len(draw.everyone.class_names) == 10
    assert draw.tests["base"].class_names == draw.tests["new"].class_names == data.part("test").class_names
    assert set(draw.tests["new alone"].class_names).isdisjoint(draw.support.class_names)
    zero = handful.ZeroShot(mini).fit(class_names=data.part("train").class_names)
    train = data.part("train")
    right = zero.predict(train) == np.array(train.class_names)[train.labels]
    score = {name: right[train.labels == row].mean() for row, name in enumerate(train.class_names)}
    assert min(score[n] for n in draw.support.class_names) >= max(
        score[n] for n in draw.tests["new alone"].class_names
    )
    tip = fit(handful.TipAdapter(mini), draw)  # takes classes in: it has images of all
    assert len(tip.class_names_) == 10
    assert len(fit(handful.TextTuning(mini, epochs=1, views=0), draw).class_names_) == 7
    assert answer(tip, draw.tests["new alone"]).shape[1] == 3


def test_domains_share_classes(data: Dataset, mini: handful.Backbone):
    part = data.part("test").of_classes([3, 1, 7])
    other = Dataset("other", {"test": part}, "default", "x")
    (draw,) = domain_shift(data, [other], (2,), (1,))
    clf = fit(handful.LinearProbe(mini), draw)
    logits = answer(clf, draw.tests["other"])
    assert logits.shape == (len(part), 3)
    whole = clf.decision_function(part)
    np.testing.assert_array_equal(logits, whole[:, [clf.class_names_.index(n) for n in part.class_names]])
    alien = Dataset("alien", {"test": ImageSet(part.items, part.labels, ("a", "b", "c"))}, "default", "y")
    with pytest.raises(handful.DataError, match="shares 0 class names"):
        list(domain_shift(data, [alien]))
    (draw,) = domain_shift(
        Dataset("learned", {"train": data.part("train")}, "default", "z"), [other], (2,), (1,)
    )
    assert list(draw.tests) == ["other"]  # a set to learn on needs no test part
    (draw,) = cross_dataset(data, [alien], (2,), (1,))
    assert list(draw.tests) == ["few", "alien"]
    assert answer(fit(handful.ZeroShot(mini), draw), draw.tests["alien"]).shape == (len(part), 3)


def test_what_is_tried_by_default_is_quick_and_can_choose(mini: handful.Backbone):
    methods = sensible(mini)
    assert list(methods)[:2] == ["zero-shot", "auto"]
    assert not {"clip-adapter", "coop", "prolip", "taskres", "text-tuning"} & methods.keys()
    assert {m.get_params().get("selection", "support") for m in methods.values()} == {"support"}
    assert sensible(mini, ["cross-modal-probe"])["cross-modal-probe"].selection == "fixed"


SELECTIONS = {
    "auto": ["fixed", "support"],
    "gda": ["fixed", "support", "val"],
    "kernel-ridge": ["fixed", "support", "val"],
    "ss-text": ["fixed", "support", "val"],
    "tip-adapter": ["fixed", "support", "val"],
    "tip-adapter-f": ["fixed", "support", "val"],
    "ape": ["fixed", "support", "val"],
    "ape-t": ["fixed", "support", "val"],
    "clip-adapter": ["fixed", "support", "val"],
    "logistic-probe": ["fixed", "support", "val"],
    "linear-probe": ["fixed", "support", "val"],
    "lp-plus-plus": ["fixed", "support", "val"],
    "cross-modal-probe": ["fixed", "val"],
}

SMALL = {
    "coop": {"length": 2, "epochs": 1}, "cocoop": {"epochs": 1, "batch_size": 20},
    "mma": {"width": 4, "epochs": 1}, "fine-tuning": {"epochs": 1}, "tip-adapter-f": {"epochs": 1},
    "ape-t": {"epochs": 1}, "clip-adapter": {"epochs": 1}, "text-tuning": {"epochs": 1},
    "taskres": {"epochs": 1}, "lp-plus-plus": {"epochs": 12}, "prolip": {"epochs": 3},
    "cross-modal-probe": {"iterations": 3},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "selection"),
    [(name, selection) for name in sorted(handful.METHODS) for selection in SELECTIONS.get(name, ["fixed"])],
)
def test_no_fit_reads_a_test_image(name: str, selection: str, data: Dataset, mini: handful.Backbone):
    class Spy(tuple):  # test items, that say so when they are touched
        touched = False

        def __iter__(self):
            Spy.touched = True
            return super().__iter__()

        def __getitem__(self, row):
            Spy.touched = True
            return super().__getitem__(row)

    test = data.part("test")
    spied = ImageSet(Spy(test.items), test.labels, test.class_names)
    parameters = {**SMALL.get(name, {})} | ({"selection": selection} if name in SELECTIONS else {})
    if "views" in handful.METHODS[name]._get_param_names():
        parameters["views"] = 0
    val = data.part("train")
    (draw,) = few_shot_draws(data.part("train"), spied, (2,), (1,), val)
    Spy.touched = False
    clf = fit(handful.METHODS[name](mini, **parameters), draw)
    assert not Spy.touched
    answer(clf, draw.tests["test"])
    assert Spy.touched


def test_the_oracle_is_the_one_that_reads_it(data: Dataset, mini: handful.Backbone):
    (draw,) = few_shot_draws(data.part("train"), data.part("test"), (2,), (1,))
    clf = fit(handful.TipAdapter(mini, selection="oracle"), draw)
    assert clf.selection_ == "oracle"
    for draw in cross_category(mini, data, (2,), (1,)):
        for cls in (handful.TipAdapter, handful.TipAdapterF):  # given all classes, and base alone
            assert fit(cls(mini, selection="oracle", views=0), draw).selection_ == "oracle"


# -- figures of merit -----------------------------------------------------------------------------


def test_calibration_error():
    sure = np.array([[0.9, 0.1]] * 10)
    assert calibration_error(sure, np.array([0] * 9 + [1])) == pytest.approx(0)
    assert calibration_error(sure, np.ones(10, int)) == pytest.approx(0.9)
    half = np.array([[0.9, 0.1]] * 5 + [[0.4, 0.6]] * 5)
    assert calibration_error(half, np.zeros(10, int)) == pytest.approx((0.1 + 0.6) / 2)


def test_harmonic_means_are_those_of_the_field():
    """The average row's is that of the averages, not the mean of the rows' (Zhou et al. 2022b, table 1)."""
    for base, new, both in (
        (69.34, 74.22, 71.70), (82.69, 63.22, 71.66), (80.47, 71.69, 75.83), (82.28, 75.14, 78.55),
        (84.26, 76.10, 79.97), (83.20, 76.80, 79.87),
    ):  # fmt: skip
        assert harmonic_mean(base, new) == pytest.approx(both, abs=0.006)
    assert harmonic_mean(0, 0) == 0


# -- compare --------------------------------------------------------------------------------------


def test_compare_says_what_is_best_and_what_is_noise(
    mini: handful.Backbone, digits: Path, tmp_path: Path, call
):
    folder = link_some(digits / "train", tmp_path / "folder", 8)
    code, out, err = call(
        "compare", folder, "--methods", "linear-probe", "--methods", "tip-adapter", "--repeats", "2",
        "--fit-best", "--out", tmp_path / "best",
    )  # fmt: skip
    assert code == 0, err
    assert "is best" in out
    assert "over zero-shot" in out
    assert handful.load(tmp_path / "best").method in ("linear-probe", "tip-adapter")


class Guess(handful.FewShotClassifier):
    """Zero-shot, with a few answers spoilt."""

    def __init__(self, backbone: object = None) -> None:
        self.backbone = backbone

    def learn(self, task):
        noise = 1e-3 * torch.randn(task.class_weights.shape)
        return Learned(CosineHead(task.class_weights + noise, task.scale))


def test_compare_says_when_nothing_helps(mini: handful.Backbone, digits: Path, tmp_path: Path):
    images = ImageSet.from_folder(link_some(digits / "train", tmp_path / "folder", 4), verify=False)
    found = compare({"guess": Guess(mini), "zero-shot": handful.ZeroShot(mini)}, images, repeats=1)
    assert found.advice.startswith("Adaptation is not likely to help here: zero-shot has ")
    assert "better with a probability of 50 %" in found.advice  # the same answers: nobody knows
    assert found.best == "zero-shot"
    assert found.folds == 4  # shots, each held out once
    again = compare({"zero-shot": handful.ZeroShot(mini)}, images, repeats=1)
    assert "nothing is better" in again.advice
    with pytest.raises(handful.ParameterError, match="zero-shot among them"):
        compare({"guess": Guess(mini)}, images)
    few = images.of_classes([0, 1])[[0, 4]]
    with pytest.raises(handful.DataError, match="no class with two images"):
        compare({"zero-shot": handful.ZeroShot(mini)}, few)


class Right(handful.FewShotClassifier):
    """Answers as the file's name says, but for the first images, which it gets wrong."""

    class_names_, selection_ = (), "fixed"

    def __init__(self, wrong: int = 0) -> None:
        self.wrong = wrong

    def fit(self, images: ImageSet, labels: Any = None, **given: Any):
        self.class_names_ = images.class_names
        return self

    def decision_function(self, images: ImageSet):
        rows = [int(str(item).split()[1]) for item in images.items]
        wrong = [int(str(item).split()[0]) < self.wrong for item in images.items]
        return np.eye(4)[(np.array(rows) + wrong) % 4]


def described(sizes: list[int]) -> ImageSet:
    """Images that are called by their number and their class."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    labels = labels[np.random.default_rng(0).permutation(len(labels))]
    items = [f"{number} {label}" for number, label in enumerate(labels)]
    return ImageSet(items, labels, tuple("abcd"[: len(sizes)]))


def test_compare_takes_what_is_likely_better_and_says_how_sure_it_is():
    """One image in forty more is little, but more is likelier than less; seven are sure."""
    images = described([10] * 4)
    found = compare({"zero-shot": Right(8), "lucky": Right(7)}, images)
    assert [one.method for one in found.ranks] == ["lucky", "zero-shot"]
    assert 0 < found.ranks[0].gain < found.ranks[0].gain_error
    assert found.best == "lucky"
    assert 0.5 < found.ranks[0].better < 0.9
    assert f"better with a probability of {100 * found.ranks[0].better:.0f} %" in found.advice
    found = compare({"zero-shot": Right(8), "good": Right(1), "alike": Right(2)}, images)
    assert found.best == "good"
    assert found.ranks[0].better > 0.9
    assert "The difference to alike is within noise" in found.advice
    found = compare({"zero-shot": Right(20), "good": Right(1), "other": Right(12)}, images)
    assert found.best == "good"
    assert "within noise" not in found.advice
    found = compare({"zero-shot": Right(1), "worse": Right(12), "bad": Right(20)}, images)
    assert found.best == "zero-shot"
    assert found.advice.startswith("Adaptation does not help here: zero-shot has 97.5 ± ")
    assert [one.method for one in found.ranks] == ["zero-shot", "worse", "bad"]


class Large(Right):
    """Answers always with the first class."""

    def decision_function(self, images: ImageSet):
        return np.eye(4)[[0] * len(images)]


def test_compare_ranks_by_the_mean_over_classes():
    """Of 100 to 3 to 3 images, 94 % are right who know the first class alone; that is one class of three."""
    images = described([100, 3, 3])
    found = compare({"zero-shot": Large(), "good": Right(40)}, images, repeats=1)
    good, large = found.ranks
    assert (good.method, large.method) == ("good", "zero-shot")
    assert large.accuracy == pytest.approx(100 / 106)
    assert large.balanced_accuracy == pytest.approx(1 / 3)
    assert good.accuracy < large.accuracy
    assert (found.smallest, found.largest, found.folds) == (3, 100, 16)
    assert "Classes have 3 to 100 images: each class counts alike, not each image." in found.notes
    assert found.notes[-1].startswith("Few images of 'b' (3), 'c' (3): ")


class FreeOfNames(Right):
    """Says that it does not trust names."""

    trusts_names = False


def test_where_names_say_nothing_no_method_that_trusts_them_is_advised():
    images = described([8] * 4)
    methods = {"zero-shot": Large(), "trusting": Right(4), "free": FreeOfNames(9)}
    found = compare(methods, images)
    assert [one.method for one in found.ranks] == ["trusting", "free", "zero-shot"]
    assert found.best == "free"
    assert "The class names say nothing of these images: zero-shot has 25 %" in found.notes[0]
    found = compare({**methods, "zero-shot": Right(12)}, images)
    assert (found.best, found.notes) == ("trusting", ())
    assert (
        compare({"zero-shot": Large(), "trusting": Right(4)}, images).best == "trusting"
    )  # there is no other


def test_a_class_of_one_image_is_learned_and_not_measured():
    seen: list[int] = []

    class Watching(Right):
        def fit(self, images: ImageSet, labels: Any = None, **given: Any):
            seen.append(int((images.labels == 3).sum()))
            return super().fit(images)

    found = compare({"zero-shot": Watching(), "other": Watching(9)}, described([4, 4, 4, 1]))
    assert set(seen) == {1}
    assert found.ranks[0].accuracy == 1
    assert "One image of d: learned, and not measured." in found.notes
    assert (found.smallest, found.folds, found.repeats) == (1, 4, 3)


def test_an_estimate_has_the_draw_in_it():
    """Nadeau and Bengio's variance of one image beside n that are learned: v (1/n + 1/n)."""
    labels = np.repeat([0, 1], 50)
    values = (np.arange(100) % 4 > 0).astype(float)
    found = estimate(values, labels)
    within = [values[labels == c].var(ddof=1) for c in (0, 1)]
    expected = sum(v * 2 / 50 for v in within) ** 0.5 / 2
    assert found.mean == pytest.approx(sum(values[labels == c].mean() for c in (0, 1)) / 2)
    assert found.error == pytest.approx(expected, rel=0.01)
    assert found.half == pytest.approx(1.98 * found.error, rel=0.01)
    sure = estimate(np.ones(8), np.repeat([0, 1], 4))
    assert 0.05 < sure.half < 0.2  # eight of eight are not all there will ever be
    assert estimate(np.zeros(8), np.repeat([0, 1], 4)).positive == 0.5


def test_a_large_class_does_not_hide_the_doubt_of_small_ones():
    """Three of three right say of 100 : 3 : 3 images what they say of 3 : 3 : 3."""
    small = estimate(np.ones(9), np.repeat([0, 1, 2], 3))
    assert estimate(np.ones(106), np.repeat([0, 1, 2], [100, 3, 3])).half > 0.9 * small.half


def test_an_evaluation_is_beside_zero_shot(data: Dataset, mini: handful.Backbone, tmp_path: Path):
    test = data.part("test")
    clf = handful.LinearProbe(mini).fit(data.part("train"))
    some = test.of_classes([2, 0])
    found = evaluate(clf, some)
    assert (found.images, found.classes, found.method) == (12, 10, "linear-probe")
    assert found.accuracy == clf.score(some)
    assert found.zero_shot == handful.ZeroShot(mini).fit(class_names=clf.class_names_).score(some)
    assert list(found.per_class) == [clf.class_names_[row] for row in (0, 2)]
    assert np.mean(list(found.per_class.values())) == pytest.approx(found.accuracy)
    clf.save(tmp_path / "model")
    assert found.record(tmp_path / "model", tmp_path / "few" / "test")
    assert "few/test" in (tmp_path / "model" / "README.md").read_text()

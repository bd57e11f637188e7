"""Prediction sets hold the class of an image as often as stated; a method may hold out images itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from toys import NAMES, toy

import handful
from handful.estimator.conformal import HeldOutScores, can_state, set_rule
from handful.extend import CosineHead, FewShotClassifier, HeldOut, Learned, Task, folds


def p_values(scores: HeldOutScores, probabilities: Tensor, weights: Tensor) -> Tensor:
    """Candidate by candidate: the weighted share of held-out images that fit their class no better."""
    own = weights[scores.labels]
    found = torch.zeros_like(probabilities, dtype=torch.float64)
    for image, row in enumerate(probabilities):
        for label, p in enumerate(row):
            lower = own[scores.probabilities <= p].sum()
            found[image, label] = (lower + weights[label]) / (own.sum() + weights[label])
    return found


@pytest.mark.parametrize("counts", [[12, 12, 12], [20, 9, 5], [1, 9, 30], [14, 0, 14], [25, 0, 8]])
@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 1 - 1 / 9])
def test_a_class_is_in_the_set_where_its_p_value_is_above_alpha(counts: list[int], coverage: float):
    generator = torch.Generator().manual_seed(sum(counts))
    labels = torch.arange(3).repeat_interleave(torch.tensor(counts))
    scores = HeldOutScores(torch.rand(len(labels), generator=generator), labels, balance=True)
    queries = torch.rand(40, 3, generator=generator).softmax(1)
    queries[0] = scores.probabilities[:3]  # ties
    if counts == [1, 9, 30] and coverage > 0.75:
        with pytest.raises(handful.ParameterError, match=r"it takes [23] of each"):
            set_rule(scores, NAMES, coverage)
        return
    has = torch.tensor(counts) > 0
    equal = len(set(counts) - {0}) == 1
    weights = torch.tensor([sum(counts) / int(has.sum()) / max(count, 1) for count in counts]).double()
    weights = torch.ones(3).double() if equal else torch.where(has, weights, 1.0)
    expected = p_values(scores, queries, weights) > 1 - coverage + 1e-9
    assert torch.equal(set_rule(scores, NAMES, coverage).mask(queries), expected)
    alike = HeldOutScores(scores.probabilities, labels, balance=False)
    expected = p_values(alike, queries, torch.ones(3).double()) > 1 - coverage + 1e-9
    assert torch.equal(set_rule(alike, NAMES, coverage).mask(queries), expected)


def test_by_class_each_has_its_own_threshold():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat_interleave(torch.tensor([9, 20, 30]))
    scores = HeldOutScores(torch.rand(59, generator=generator), labels)
    rule = set_rule(scores, NAMES, 0.9, by="class")
    for row in range(3):
        own = scores.probabilities[labels == row].sort().values
        assert rule.thresholds[row] == own[[0, 1, 2][row]]  # floor((n + 1) / 10)
    assert set_rule(scores, NAMES, 0.9, by="auto") == rule
    assert set_rule(scores, NAMES, 0.91, by="auto").by == "all"
    with pytest.raises(handful.ParameterError, match=r"'cat' 9: it takes 11 of each"):
        set_rule(scores, NAMES, 0.91, by="class")


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95])
def test_the_class_is_in_the_set_as_often_as_stated(coverage: float):
    """Over draws of held-out scores and a new image, from one distribution for each class."""
    generator = torch.Generator().manual_seed(1)
    counts, inside = torch.tensor([40, 20, 10]), torch.zeros(3)
    labels, draws = torch.arange(3).repeat_interleave(counts), 1500
    power = torch.tensor([0.3, 1.0, 3.0])
    for _ in range(draws):
        scores = HeldOutScores(torch.rand(70, generator=generator) ** power[labels], labels)
        rule = set_rule(scores, NAMES, coverage)
        inside += rule.mask(torch.rand(1, 3, generator=generator) ** power)[0]
    assert -0.012 < float((inside / draws).mean()) - coverage < 0.04  # the mean over classes


def test_an_empty_set_can_be_the_best():
    scores = HeldOutScores(torch.linspace(0.5, 1, 20), torch.arange(2).repeat(10))
    asked = torch.tensor([[0.4, 0.6], [0.51, 0.49], [0.3, 0.3]])
    rule = set_rule(scores, ["a", "b"], 0.9)
    assert rule.rows(asked) == [[1], [], []]
    assert set_rule(scores, ["a", "b"], 0.9, empty="best").rows(asked) == [[1], [0], [0]]
    assert set_rule(scores, ["a", "b"], 0.05, empty="best").mask(asked).sum(1).tolist() == [1, 1, 1]


def test_what_cannot_be_stated():
    scores = HeldOutScores(torch.rand(40), torch.arange(2).repeat(20))
    for rate in (0, 1, -0.1, 2, "much", True, float("nan")):
        with pytest.raises(handful.ParameterError, match="coverage"):
            set_rule(scores, ["a", "b"], rate)
    with pytest.raises(handful.ParameterError, match=r"40 held-out images: it takes 99 .* 0\.975 at most"):
        set_rule(scores, ["a", "b"], 0.99)
    with pytest.raises(handful.ParameterError, match="by='each'"):
        set_rule(scores, ["a", "b"], 0.9, by="each")
    with pytest.raises(handful.ParameterError, match="empty="):
        set_rule(scores, ["a", "b"], 0.9, empty="all")
    for count in range(1, 60):
        some = HeldOutScores(torch.rand(count), torch.zeros(count, dtype=torch.int64))
        assert can_state(some, ["a", "b"], count / (count + 1))
        assert not can_state(some, ["a", "b"], (count + 0.01) / (count + 1.01))
    for rate in (1e-14, 1e-6):
        assert set_rule(scores, ["a", "b"], rate).thresholds[0] == scores.probabilities.max()
    assert not can_state(scores, ["a", "b"], 1 - 1e-14)


@pytest.mark.parametrize("name", ["tip-adapter", "logistic-probe"])
def test_sets_of_a_calibrated_classifier(
    name: str, mini: handful.Backbone, support: handful.ImageSet, held_out: handful.ImageSet, tmp_path: Path
):
    clf = handful.METHODS[name](mini).fit(support)
    with pytest.raises(handful.ParameterError, match="not calibrated"):
        clf.predict_set(held_out)
    clf.calibrate(support)
    mask = clf.predict_set_mask(held_out, 0.8)
    assert mask[np.arange(len(mask)), held_out.labels].mean() > 0.6
    found = clf.predict_set(held_out, 0.8, empty="best")
    assert [one[0] for one in found] == clf.predict(held_out).tolist()
    assert [len(one) for one in found] == np.maximum(mask.sum(1), 1).tolist()
    assert (clf.predict_set_mask(held_out, 0.95) >= mask).all()
    again = handful.load(clf.save(tmp_path / "kept"), mini)
    assert again.predict_set(held_out, 0.8, empty="best") == found
    numbers = handful.METHODS[name](mini).fit(support.items, support.labels, class_names=support.class_names)
    assert isinstance(numbers.calibrate(support).predict_set(held_out, 0.5)[0], tuple)


def test_a_calibration_of_an_earlier_version_keeps_no_scores(
    mini: handful.Backbone, support: handful.ImageSet, tmp_path: Path
):
    clf = handful.ZeroShot(mini).fit(support).calibrate(support)
    found = clf.calibration_
    clf.fitted_ = replace(clf.fitted_, calibration=replace(found, scores=None, probability_weight=0.0))
    again = handful.load(clf.save(tmp_path / "old"), mini)
    old = {"temperature", "threshold", "false_alarm", "images", "folds"}
    assert again.calibration_ == clf.calibration_ and set(again.info()["calibration"]) == old
    with pytest.raises(handful.ParameterError, match=r"keeps no scores.*calibrate"):
        again.predict_set(support)


def test_damaged_scores_are_refused(mini: handful.Backbone, support: handful.ImageSet, tmp_path: Path):
    from handful import checkpoint

    folder = handful.ZeroShot(mini).fit(support).calibrate(support).save(tmp_path / "kept")
    tensors, facts = checkpoint.read(folder)
    facts = {name: value for name, value in facts.items() if name not in ("format", "tensors")}
    scores, labels = tensors["calibration.scores"], tensors["calibration.labels"]
    bad = [
        {"calibration.scores": scores[:3]}, {"calibration.scores": scores + 1},
        {"calibration.scores": scores * float("nan")}, {"calibration.scores": scores.long()},
        {"calibration.labels": labels + 9}, {"calibration.labels": labels.float()},
        {"calibration.scores": scores[:0], "calibration.labels": labels[:0]},
        {"calibration.more": scores + 0},
    ]  # fmt: skip
    for change in bad:
        checkpoint.write(folder, tensors | change, facts)
        with pytest.raises(handful.CheckpointError):
            handful.load(folder, mini)
    for left_out in ("calibration.scores", "calibration.labels", "calibration.means"):
        checkpoint.write(folder, {k: v for k, v in tensors.items() if k != left_out}, facts)
        with pytest.raises(handful.CheckpointError, match="calibration"):
            handful.load(folder, mini)
    for balance in (None, 1):
        checkpoint.write(
            folder, tensors, facts | {"calibration": facts["calibration"] | {"balance": balance}}
        )
        with pytest.raises(handful.CheckpointError, match="calibration is damaged"):
            handful.load(folder, mini)


class Prototype(FewShotClassifier):
    """Class means; what each fold's means say of the others."""

    def __init__(self, backbone=None, views=0, count=4, calibrated=False, class_names=None, balance=True):
        self.backbone, self.views, self.count, self.calibrated = backbone, views, count, calibrated
        self.class_names, self.balance = class_names, balance

    def learn(self, task) -> Learned:
        features, labels = task.features.directions(), task.labels

        def means(rows: Tensor) -> Tensor:
            sums = torch.zeros(len(task.class_names), features.shape[1])
            return F.normalize(sums.index_add_(0, labels[rows], features[rows]), dim=-1)

        parts = [(torch.from_numpy(kept), torch.from_numpy(out)) for kept, out in folds(labels, self.count)]
        held = None
        if parts:
            logits = torch.cat([task.scale * features[out] @ means(kept).T for kept, out in parts])
            held = HeldOut(logits, torch.cat([out for _, out in parts]), len(parts), self.calibrated)
        head = CosineHead(means(torch.arange(len(labels))), task.scale)
        return Learned(head, held_out=held)


def test_a_method_that_holds_images_out_itself_is_calibrated_by_fit(tmp_path: Path):
    features, labels, text = toy(6)
    given = {"class_names": NAMES, "class_weights": text}
    clf = Prototype(count=6).fit(features, labels, **given)
    found = clf.calibration_
    assert (found.images, found.folds, found.false_alarm) == (18, 6, 0.05)
    assert found.threshold == -1 and "it takes 19" in found.too_few
    by_folds = (
        Prototype(count=6)
        .fit(features, labels, **given)
        .calibrate(features, labels, folds=6, class_weights=text)
    )
    assert found.temperature == pytest.approx(by_folds.calibration_.temperature, rel=1e-4)
    np.testing.assert_allclose(
        found.scores.probabilities.sort().values, by_folds.calibration_.scores.probabilities.sort().values,
        rtol=1e-4,
    )  # fmt: skip
    assert clf.predict_set(features, 0.9)
    again = handful.load(clf.save(tmp_path / "kept"), method=Prototype)
    assert again.predict_set(features, 0.9) == clf.predict_set(features, 0.9)
    assert Prototype(calibrated=True).fit(features, labels, **given).calibration_.temperature == 1
    assert Prototype().fit(features[::6], labels[::6], **given).calibration_ is None


def test_its_rule_for_unknown_images_leaves_each_image_out_of_its_class(tmp_path: Path):
    features, labels, text = toy(12)
    given = {"class_names": NAMES, "class_weights": text}
    clf = Prototype().fit(features, labels, **given)
    found, held = clf.calibration_, clf.learn(task_of(features, labels, text)).held_out
    units, cosines = F.normalize(features, dim=-1), []
    for row in held.rows.tolist():
        kept = np.arange(len(units)) != row
        means = [units[kept & (labels == label)].sum(0) for label in range(3)]
        cosines.append(float((units[row] @ F.normalize(torch.stack(means), dim=-1).T).max()))
    largest = (held.logits / found.temperature).softmax(1).max(1).values.numpy()
    assert found.probability_weight == pytest.approx(0.5 * np.std(cosines) / max(np.std(largest), 0.02))
    familiar = np.array(cosines) + found.probability_weight * largest
    assert found.threshold == pytest.approx(np.sort(familiar)[0], abs=1e-6)  # floor(0.05 * 37)
    expected = (units @ found.means.T).max(1).values.numpy()
    expected = expected + found.probability_weight * clf.predict_proba(features).max(1)
    np.testing.assert_array_equal(clf.classify(features)[1], expected < found.threshold)
    absent = Prototype().fit(features, labels, class_names=[*NAMES, "zebra"], class_weights=torch.eye(4, 16))
    assert absent.calibration_.threshold == -1 and "probabilities alone" in absent.calibration_.too_few
    assert absent.predict_set_mask(features).shape == (36, 4)
    absent.save(tmp_path / "kept")
    views = features[:, None] + torch.zeros(1, 2, 1)
    seen = Prototype().fit(handful.Features(views), labels, **given)
    assert seen.calibration_.threshold == -1 and "several views" in seen.notes_[-1]


def task_of(features: Tensor, labels: np.ndarray, text: Tensor) -> Task:
    return Task(handful.Features(features[:, None]), torch.from_numpy(labels), tuple(NAMES), text, 100.0)


class Wrong(Prototype):
    """Holds out something else."""

    def __init__(self, backbone=None, held=None, class_names=None):
        self.backbone, self.held, self.class_names = backbone, held, class_names

    def learn(self, task) -> Learned:
        return Learned(CosineHead(task.class_weights, task.scale), held_out=HeldOut(*self.held))


def test_what_a_method_held_out_is_checked():
    features, labels, text = toy(2)
    rows = torch.arange(6)
    for held in [
        (torch.zeros(6, 2), rows), (torch.zeros(5, 3), rows), (torch.zeros(6, 3), rows + 1),
        (torch.zeros(6, 3), rows // 2), (torch.zeros(6, 3), rows.float()), (torch.zeros(0, 3), rows[:0]),
    ]:  # fmt: skip
        with pytest.raises(handful.ParameterError, match="Got held_out of logits"):
            Wrong(held=held).fit(features, labels, class_names=NAMES, class_weights=text)
    with pytest.raises(handful.HandfulError, match="logits"):
        held = (torch.full((6, 3), float("nan")), rows)
        Wrong(held=held).fit(features, labels, class_names=NAMES, class_weights=text)

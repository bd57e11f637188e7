"""Classes of unequal numbers of images count alike, however a method learns."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from toys import NAMES, same, toy

import handful
from handful.balance import balanced_order, effective_number, image_weights, share_right, whole_weights
from handful.cache import CacheHead
from handful.estimator.calibrating import fit_temperature
from handful.extend import Learned, Schedule, Task, cross_entropy
from handful.methods.features import logistic_probe
from handful.methods.features.tip_adapter import searched
from handful.schedule import seeded
from handful.search import best_pair, best_ratio
from handful.selection import Validation, choose, folds
from handful.train import shuffled

SKEWED, NOISE = (60, 3, 3), 1.2
FAST = {
    "auto": {},
    "gda": {"selection": "fixed", "alpha": 1.0},
    "kernel-ridge": {"selection": "fixed"},
    "ss-text": {"selection": "fixed"},
    "tip-adapter": {"selection": "support"},
    "tip-adapter-f": {"selection": "support"},
    "ape": {"selection": "support"},
    "ape-t": {"selection": "support"},
    "clip-adapter": {"epochs": 30},
    "text-tuning": {"epochs": 30},
    "logistic-probe": {"selection": "fixed"},
    "linear-probe": {"strength": 0.0},
}
LEARNS = sorted(set(handful.METHODS) - {"zero-shot", "meta-adapter"})
"""Methods whose answers depend on how many images a class has; a class enters Meta-Adapter's by its mean."""


def skewed(counts: tuple[int, ...] = SKEWED, seed: int = 0) -> tuple[Tensor, np.ndarray, Tensor]:
    """Give a toy task with some numbers of images of its classes."""
    features, labels, text = toy(max(counts), seed=seed, noise=NOISE)
    kept = np.concatenate([np.flatnonzero(labels == row)[:count] for row, count in enumerate(counts)])
    return features[kept], labels[kept], text


def fitted(
    name: str, counts: tuple[int, ...] = SKEWED, seed: int = 0, **more: object
) -> handful.FewShotClassifier:
    features, labels, text = skewed(counts, seed)
    clf = handful.METHODS[name](**{**FAST[name], **more})
    weights = {"class_weights": text} if clf.uses_text else {}
    return clf.fit(features, labels, class_names=NAMES, **weights)


def balanced_accuracy(name: str, counts: tuple[int, ...] = SKEWED, **more: object) -> float:
    """Mean over four draws, on as many test images of each class."""
    test, truth, _ = toy(60, seed=9, noise=NOISE)
    answers = [fitted(name, counts, seed, **more).decision_function(test).argmax(1) for seed in range(4)]
    return float(np.mean([answer == truth for answer in answers]))


# -- every method ---------------------------------------------------------------------------------


def test_every_method_that_learns_from_counts_has_the_parameter():
    for name, cls in handful.METHODS.items():
        parameters = inspect.signature(cls).parameters
        assert ("balance" in parameters) == (name in LEARNS)
        assert name not in LEARNS or parameters["balance"].default is True


@pytest.mark.parametrize(
    "name", sorted(set(FAST) - {"ss-text"})
)  # here no class wins by its size in that one
def test_a_large_class_does_not_win_by_its_size(name: str):
    alike, by_size = balanced_accuracy(name), balanced_accuracy(name, balance=False)
    assert alike >= balanced_accuracy(name, (3, 3, 3)) - 0.1
    assert alike > by_size


@pytest.mark.parametrize("name", FAST)
def test_equal_classes_are_as_they_were_to_the_last_bit(name: str):
    test = toy(20, seed=9)[0]
    logits = [fitted(name, (5, 5, 5), balance=balance).decision_function(test) for balance in (True, False)]
    np.testing.assert_array_equal(*logits)


@pytest.mark.parametrize("name", FAST)
def test_anything_else_than_yes_or_no_is_refused(name: str):
    with pytest.raises(handful.ParameterError, match="Got balance='yes', expected True"):
        fitted(name, balance="yes")


# -- by formula -----------------------------------------------------------------------------------


def repeated(counts: tuple[int, ...]) -> tuple[tuple[Tensor, np.ndarray, Tensor], tuple[Tensor, np.ndarray]]:
    """Give a task, and the same with the images of small classes repeated until all are as large."""
    features, labels, text = skewed(counts)
    rows = np.concatenate(
        [np.resize(np.flatnonzero(labels == row), max(counts)) for row in range(len(counts))]
    )
    return (features, labels, text), (features[rows], labels[rows])


def test_the_linear_probe_is_that_of_repeated_images():
    (features, labels, text), (more, marks) = repeated((6, 3, 2))
    clf, other = (
        handful.LinearProbe(strength=0.3, tolerance=1e-9).fit(x, y, class_names=NAMES, class_weights=text)
        for x, y in ((features, labels), (more, marks))
    )
    np.testing.assert_allclose(clf.head_.class_weights, other.head_.class_weights, atol=3e-4)


def test_the_logistic_probe_searches_for_the_mean_over_classes():
    features, labels, _ = skewed()
    x, seen = features[:, None].numpy(), []
    score = logistic_probe.cross_validation(x, labels, 3, balance=True)
    for c in (1e-6, 1.0):
        said, truth = [], []
        for kept, out in folds(labels, 3):
            model = LogisticRegression(C=c, max_iter=1000, class_weight="balanced").fit(
                x[kept, 0], labels[kept]
            )
            said.append(model.predict_log_proba(x[out, 0]))
            truth.append(labels[out])
            assert np.bincount(labels[out]).tolist() == [20, 1, 1]  # its share of every class
        logits, rows = torch.from_numpy(np.concatenate(said)), torch.from_numpy(np.concatenate(truth))
        own = (logits / fit_temperature(logits, rows, True)).log_softmax(1).gather(1, rows[:, None])[:, 0]
        seen.append(np.mean([float(own[rows == row].mean()) for row in range(3)]))
    np.testing.assert_allclose([score(1e-6), score(1.0)], seen, atol=1e-4)


def test_the_logistic_probe_is_that_of_repeated_images():
    (features, labels, _), (more, marks) = repeated((6, 3, 2))
    clf = handful.LogisticProbe(selection="fixed", C=1.8).fit(features, labels)  # 11 images weigh 11
    other = handful.LogisticProbe(selection="fixed", C=1.8 * 11 / 18).fit(more, marks)
    np.testing.assert_allclose(clf.head_.weight, other.head_.weight, atol=1e-3)


def test_a_cache_is_that_of_repeated_images():
    (features, labels, text), (more, marks) = repeated((6, 3, 2))
    clf = handful.TipAdapter(alpha=18 / 11).fit(features, labels, class_names=NAMES, class_weights=text)
    other = handful.TipAdapter(alpha=1.0).fit(more, marks, class_names=NAMES, class_weights=text)
    test = toy(5, seed=3)[0]
    same(clf.decision_function(test), other.decision_function(test))
    added = torch.zeros(3).index_add_(0, torch.from_numpy(labels), clf.head_.evidence(test[0]))
    again = torch.zeros(3).index_add_(0, torch.from_numpy(marks), other.head_.evidence(test[0]))
    np.testing.assert_allclose(added, again, rtol=1e-4)


def test_a_class_without_images_takes_no_part():
    features, labels, text = skewed((6, 3, 0))
    clf = handful.TipAdapter().fit(features, labels, class_names=NAMES, class_weights=text)
    assert clf.head_.values[:2].tolist() == [0.75, 1.5] and np.isfinite(clf.decision_function(features)).all()


def test_weights_add_up_to_as_much_for_every_class():
    labels = torch.tensor([0] * 100 + [2] * 3 + [5] * 3)
    sums = torch.zeros(6, dtype=torch.float64).index_add_(0, labels, image_weights(labels))
    np.testing.assert_allclose(sums[[0, 2, 5]], 106 / 3)
    assert image_weights(torch.arange(7).repeat(3)).unique().tolist() == [1.0]
    assert effective_number(torch.bincount(labels)) == pytest.approx(9 / (1 / 100 + 2 / 3))
    assert effective_number(torch.tensor([4, 4, 4])) == 12
    right = torch.arange(106) < 100
    assert share_right(right, labels, True) == pytest.approx(1 / 3, abs=1e-6)
    assert share_right(right, labels, False) == 100 / 106


# -- training -------------------------------------------------------------------------------------


def test_an_epoch_holds_as_many_images_of_each_class():
    labels = torch.tensor([0] * 100 + [4] * 3 + [7] * 4)
    seen = torch.zeros(len(labels), dtype=torch.int64)
    generator = seeded(0)
    for _ in range(30):
        order = balanced_order(labels, generator)
        counts = torch.bincount(labels[order])[[0, 4, 7]]
        assert len(order) == 107 and sorted(counts.tolist()) == [35, 36, 36]
        few = torch.bincount(order, minlength=107)[100:103]
        assert few.max() - few.min() <= 1
        seen += torch.bincount(order, minlength=107)
    assert seen.min() > 0  # other images of a large class in each epoch


def test_more_classes_than_a_batch_and_classes_of_one_image():
    labels = torch.cat([torch.arange(50), torch.zeros(9, dtype=torch.int64)])
    counts = torch.bincount(labels[balanced_order(labels, seeded(1))], minlength=50)
    assert (counts.min(), counts.max(), counts.sum()) == (1, 2, 59)


def test_batches_are_balanced_and_drawn_alike_for_a_seed():
    features, labels, _ = skewed((20, 2, 2))
    source, marks = handful.Features(features[:, None]), torch.from_numpy(labels)
    first, again = (
        [rows.tolist() for *_, rows in shuffled(source, marks, 8, seeded(3), balance=True)] for _ in range(2)
    )
    assert first == again and [len(rows) for rows in first] == [8, 8, 8]


def losses_of(balance: bool | None, loss: object = cross_entropy) -> np.ndarray:
    """Train a bias for each class, by a method from outside, and give it."""

    class Biases(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = torch.nn.Parameter(torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.bias.expand(len(x), 3)

    class Outside(handful.FewShotClassifier):
        uses_text, trains = False, True
        head_type = handful.extend.LinearHead

        def __init__(self, backbone: object = None) -> None:
            self.backbone = backbone

        def learn(self, task: Task) -> Learned:
            model, schedule = Biases(), Schedule(40, 6, 0.1)
            run = task.train(model, schedule, schedule.generator(), loss=loss)
            weight = torch.zeros(3, task.features.values.shape[-1])
            return Learned.trained(handful.extend.LinearHead(weight, model.bias.detach()), run)

    clf = Outside()
    if balance is not None:
        clf.balance = balance
    features, labels, _ = skewed((20, 2, 2))
    return clf.fit(features, labels).head_.bias.softmax(0).numpy()


def test_a_method_from_outside_trains_on_balanced_epochs_with_any_loss():
    np.testing.assert_allclose(losses_of(None), 1 / 3, atol=0.1)
    np.testing.assert_allclose(losses_of(None, lambda m, b: 0.5 * cross_entropy(m, b)), 1 / 3, atol=0.1)
    np.testing.assert_allclose(losses_of(False), [20 / 24, 2 / 24, 2 / 24], atol=0.1)


def test_the_weights_of_a_task():
    features, labels, text = skewed((4, 2, 2))

    def task(balance: bool) -> Task:
        inputs, rows = handful.Features(features[:, None]), torch.from_numpy(labels)
        return Task(inputs, rows, tuple(NAMES), text, 100.0, balance=balance)

    assert task(True).weights.tolist() == pytest.approx([2 / 3] * 4 + [4 / 3] * 4)
    assert task(False).weights is None
    assert task(True).choose(torch.tensor([0, 1, 4, 5, 6, 7])).weights is None


# -- searches -------------------------------------------------------------------------------------


def logits(seed: int, classes: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([0] * 20 + [1] * 4 + [2] * 2)
    base, extra = (torch.randn(len(labels), classes, generator=generator) for _ in range(2))
    return base, extra, labels


@pytest.mark.parametrize("seed", range(5))
def test_an_exact_search_by_weights_misses_no_ratio(seed: int):
    base, extra, labels = logits(seed)
    weights = whole_weights(labels, True)
    ratio, found = best_ratio(base, extra, labels, 0.0, 5.0, weights)
    grid = torch.linspace(0, 5, 4001)
    scores = [share_right((base + a * extra).argmax(1) == labels, labels, True) for a in grid]
    assert found >= max(scores) - 1e-9
    assert found == share_right((base + ratio * extra).argmax(1) == labels, labels, True)
    pair = best_pair(
        base, lambda rows, betas: (b * extra[rows] for b in betas), labels, (0, 5), [1.0], weights
    )
    assert (pair.alpha, pair.accuracy) == (ratio, found)


def test_a_cache_is_searched_as_if_the_shot_had_never_been_there():
    features, labels, text = skewed((7, 3, 2))
    keys, marks = F.normalize(features, dim=-1), torch.from_numpy(labels)
    numbers = np.concatenate([np.arange(count) for count in (7, 3, 2)])
    head = CacheHead(text, keys, marks, 10.0, 1.0, 5.5, balance=True)

    def score(alpha: float, beta: float) -> float:
        right = torch.zeros(len(keys), dtype=torch.bool)
        for shot in range(7):
            out = torch.from_numpy(numbers == shot)
            rest = CacheHead(text, keys[~out], marks[~out], 10.0, alpha, beta, balance=True)
            right[out] = rest.read(keys[out]).argmax(1) == marks[out]
        return share_right(right, marks, True)

    found = searched(head, None, "wide")
    best = max(score(a, b) for a in np.geomspace(0.1, 50, 40) for b in (0.5, 1, 2, 4, 8, 16))
    assert score(found.alpha, found.beta) >= best


def test_validation_counts_classes_alike_where_the_support_set_does():
    features, labels, text = skewed((6, 2, 2))
    seen = Validation(features, torch.from_numpy(labels))

    def given(word: str, counts: tuple[int, ...], balance: bool = True) -> bool:
        x, y, _ = skewed(counts)
        inputs, rows = handful.Features(x[:, None]), torch.from_numpy(y)
        task = Task(inputs, rows, tuple(NAMES), text, 100.0, held_out=seen, balance=balance)
        return choose(word, task, lambda: None, lambda found: found.balance, "it").value

    assert given("val", (6, 2, 2)) and not given("val", (2, 2, 2))
    assert not given("val", (6, 2, 2), balance=False)
    assert not given("oracle", (6, 2, 2))  # the accuracy that its table states
    plain = Validation(features, torch.from_numpy(labels))
    assert plain.accuracy(lambda x: torch.eye(3)[[0] * len(x)]) == 0.6
    alike = Validation(features, torch.from_numpy(labels), balance=True)
    assert alike.accuracy(lambda x: torch.eye(3)[[0] * len(x)]) == pytest.approx(1 / 3, abs=1e-6)


# -- kept -----------------------------------------------------------------------------------------


def test_a_cache_keeps_it_on_disk_and_when_images_come_and_go(tmp_path: Path):
    features, labels, text = skewed((9, 3, 3))
    clf = handful.TipAdapter().fit(features[:-1], labels[:-1], class_names=NAMES, class_weights=text)
    clf.add_images(NAMES[2], features[-1:])
    whole = handful.TipAdapter().fit(features, labels, class_names=NAMES, class_weights=text)
    same(clf.decision_function(features), whole.decision_function(features))
    again = handful.load(whole.save(tmp_path))
    assert again.balance and again.head_.balance
    np.testing.assert_array_equal(again.decision_function(features), whole.decision_function(features))


def test_a_cache_from_before_goes_on_counting_images(tmp_path: Path):
    features, labels, text = skewed((9, 3, 3))
    old = handful.TipAdapter(balance=False).fit(features, labels, class_names=NAMES, class_weights=text)
    folder = old.save(tmp_path)
    facts = (folder / "head.json").read_text()
    assert (
        '"balance": false' in facts
        and load_file(folder / "head.safetensors").keys() == old.head_.tensors().keys()
    )
    (folder / "head.json").write_text(
        facts.replace('"balance": false, ', "").replace('"balance": false,\n', "")
    )
    again = handful.load(folder)
    assert not again.balance and '"balance"' not in (folder / "head.json").read_text()
    more = toy(1, seed=4)[0][:1]
    same(
        again.add_images(NAMES[0], more).decision_function(features),
        old.add_images(NAMES[0], more).decision_function(features),
    )


def test_a_damaged_balance_is_refused(tmp_path: Path):
    features, labels, text = skewed((9, 3, 3))
    clf = handful.TipAdapter().fit(features, labels, class_names=NAMES, class_weights=text)
    facts = {**clf.head_.settings(), "balance": "yes"}
    with pytest.raises(handful.CheckpointError, match="Got balance='yes'"):
        CacheHead.restore(clf.head_.tensors(), facts, handful.extend.HeadContext(tuple(NAMES), None))


def test_a_temperature_is_that_of_classes_that_count_alike():
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 90 + [1] * 6)
    sure = torch.nn.functional.one_hot(labels, 2).double() * 4
    wrong = (labels == 1) & (torch.rand(96, generator=generator) < 0.6)
    sure[wrong] = sure[wrong].flip(1)
    plain, alike = fit_temperature(sure, labels), fit_temperature(sure, labels, balance=True)
    assert alike > 1.5 * plain
    assert fit_temperature(sure[-6:], labels[-6:]) == fit_temperature(sure[-6:], labels[-6:], balance=True)

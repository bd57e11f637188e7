"""The default method: its parts, how they are weighed, what it does at the ends, and why it answers so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from scipy.optimize import minimize
from torch import Tensor
from toys import NAMES, same, toy

import handful
from handful.estimator import Task
from handful.features import Features
from handful.left_out.stacking import stack
from handful.methods.features import auto
from handful.methods.features.auto import parts, transfer
from handful.metrics import calibration_error


def problem(shots: int = 4, seed: int = 0, weights: Tensor | None = None) -> parts.Problem:
    features, labels, text = toy(shots, seed=seed)
    return parts.Problem(F.normalize(features, dim=-1), torch.from_numpy(labels), text, 20.0, weights)


def heads(count: int = 3, images: int = 60, classes: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(images) % classes
    noise = torch.randn(count, images, classes, generator=generator)
    return noise + 1.5 * F.one_hot(labels, classes) * torch.arange(1, count + 1)[
        :, None, None
    ] / count, labels


# -- stacking --------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
def test_the_stack_is_the_minimum_that_a_general_solver_finds(weighted: bool):
    logits, labels = heads()
    weights = None
    if weighted:
        weights = torch.rand(len(labels), generator=torch.Generator().manual_seed(1))
        weights = weights / weights.mean()
    prior = torch.tensor([0.0, 0.5, 1.0])
    found = stack(logits, labels, prior, 0.05, weights)
    z, y, target = logits.double().numpy(), labels.numpy(), found.drawn_to.double().numpy()
    centred = z - z.mean(2, keepdims=True)
    pull = 0.05 * np.square(centred).mean((1, 2))
    share = np.ones(len(y)) / len(y) if weights is None else weights.double().numpy() / len(y)

    def loss(w: np.ndarray) -> float:
        total = np.einsum("h,hnc->nc", w, z)
        logs = total - np.log(np.exp(total).sum(1, keepdims=True))
        return float(-share @ logs[np.arange(len(y)), y] + pull @ np.square(w - target))

    best = minimize(loss, np.ones(3), bounds=[(0, None)] * 3, tol=1e-12)
    assert loss(found.weights.double().numpy()) <= best.fun + 1e-6
    np.testing.assert_allclose(found.weights.numpy(), best.x, atol=2e-3)


def test_a_head_that_says_nothing_true_gets_no_weight_and_a_double_changes_no_answer():
    logits, labels = heads()
    wrong = torch.cat([logits, -logits[2:]])
    assert stack(wrong, labels, torch.tensor([0.3, 0.3, 0.3, 0.0]), 1e-3).weights[3] == 0
    alone = stack(logits, labels, torch.ones(3), 1e-4).weights
    doubled = stack(torch.cat([logits, logits[:1]]), labels, torch.tensor([0.5, 1.0, 1.0, 0.5]), 1e-4).weights
    assert doubled[0] + doubled[3] == pytest.approx(float(alone[0]), abs=0.02)


def test_much_drawing_leaves_the_prior_at_its_best_temperature():
    logits, labels = heads()
    found = stack(logits, labels, torch.tensor([1.0, 1.0, 0.0]), 1e6)
    torch.testing.assert_close(found.weights, found.drawn_to, atol=1e-4, rtol=1e-3)
    together = logits[0] + logits[1]
    losses = [float(F.cross_entropy(t * together, labels)) for t in (0.9, 1.0, 1.1)]
    scaled = [float(F.cross_entropy(t * found.drawn_to[0] * together, labels)) for t in (0.9, 1.0, 1.1)]
    assert scaled[1] <= min(scaled) and min(scaled) <= min(losses)


# -- parts that have not seen an image ---------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
def test_what_the_ridge_says_of_images_left_out_is_what_fits_without_them_say(weighted: bool):
    whole = problem(4, weights=torch.linspace(0.5, 1.5, 12) if weighted else None)
    folds = auto.held_out_folds(whole.labels)
    found = parts.Ridge.of(whole).left_out(folds)
    for fold in range(4):
        out = folds == fold
        rest = whole.choose(~out)
        if rest.weights is not None and whole.weights is not None:
            rest = parts.Problem(rest.x, rest.labels, rest.text, rest.scale, whole.weights[~out])
        ridge = parts.Ridge.of(rest)
        logits = parts.near(whole.x[out], ridge.landmarks) @ ridge.coefficients()
        torch.testing.assert_close(found[out], logits - logits.mean(1, keepdim=True), atol=1e-4, rtol=1e-3)


def test_with_all_images_as_landmarks_the_ridge_is_kernel_ridge():
    whole = problem(4)
    kernel = parts.near(whole.x, whole.x)
    exact = torch.linalg.solve(kernel + parts.LAMBDA * torch.eye(12), F.one_hot(whole.labels, 3).float())
    torch.testing.assert_close(parts.Ridge.of(whole).coefficients(), exact, atol=1e-4, rtol=1e-3)


def test_some_images_as_landmarks_do_about_as_well(monkeypatch: pytest.MonkeyPatch):
    features, labels, text = toy(30)
    more, truth, _ = toy(50, seed=5)
    whole = handful.Auto().fit(features, labels, class_names=NAMES, class_weights=text)
    before = whole.score(more, truth)
    monkeypatch.setattr(parts, "LANDMARKS", 24)
    bounded = handful.Auto().fit(features, labels, class_names=NAMES, class_weights=text)
    assert len(bounded.head_.tensors()["coefficients"]) == 24
    assert bounded.score(more, truth) >= before - 0.02
    kept = torch.bincount(bounded.head_.labels[bounded.head_.landmarks])
    assert kept.tolist() == [8, 8, 8]


def test_a_shot_of_each_class_is_held_out_and_never_a_lone_image():
    labels = torch.tensor([0, 0, 0, 1, 2, 2, *range(3, 8)])
    assert auto.held_out_folds(labels).tolist() == [0, 1, 2, -1, 0, 1, *[-1] * 5]
    assert auto.held_out_folds(torch.arange(8).repeat(6)).max() == 3
    assert auto.held_out_folds(torch.arange(2).repeat(30)).max() == 9  # of few classes more shots: 20 images


def test_two_shots_of_many_classes_are_enough(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(auto, "ENOUGH", 6)
    assert auto.held_out_folds(torch.arange(3).repeat(4)).max() == 1


# -- what decides at one shot ------------------------------------------------------------------------


def clip_like(classes: int = 12, shots: int = 1, seed: int = 0, gap: float = 0.0) -> parts.Problem:
    """Images around their names, in one space; with a gap, around places that names say nothing of."""
    generator = torch.Generator().manual_seed(seed)
    text = F.normalize(torch.randn(classes, 32, generator=generator), dim=-1)
    places = (1 - gap) * text + gap * F.normalize(torch.randn(classes, 32, generator=generator), dim=-1)
    labels = torch.arange(classes).repeat_interleave(shots)
    x = places[labels] + 0.15 * torch.randn(len(labels), 32, generator=generator)
    return parts.Problem(F.normalize(x, dim=-1), labels, text, 20.0, None)


def fit(given: parts.Problem, **parameters: object) -> handful.FewShotClassifier:
    names = [f"class {row:02d}" for row in range(len(given.text))]
    clf = handful.Auto(**parameters)
    return clf.fit(given.x, given.labels.numpy(), class_names=names, class_weights=given.text)


def test_names_are_worth_what_zero_shot_knows():
    assert transfer.worth_of_names(clip_like()) > 0.7
    assert transfer.worth_of_names(clip_like(classes=40, gap=1.0)) < 0.1


def test_at_one_shot_the_blend_is_fixed_and_says_so():
    clf = fit(clip_like())
    assert clf.selection_ == "fixed" and "One image of each class" in clf.notes_[-1]
    assert tuple(clf.selected_["blend"].values()) == auto.ONE_SHOT and clf.calibration_ is None


def test_names_that_say_little_are_left_out_at_one_shot():
    clf = fit(clip_like(classes=40, gap=1.0))
    assert clf.selected_["blend"]["names"] == clf.selected_["blend"]["adapter"] == 0


def test_where_images_do_not_move_with_names_one_shot_stays_with_the_names(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(auto, "moves_together", lambda problem: False)
    clf = fit(clip_like())
    assert tuple(clf.selected_["blend"].values()) == auto.NAMES_ALONE


# -- the whole ---------------------------------------------------------------------------------------


def test_weights_are_found_inside_the_support_and_say_how_sure_they_are():
    clf = fit(clip_like(shots=4))
    sure = clf.selected_["held_out"]
    assert clf.selection_ == "support" and sure["images"] == 48
    assert sure["gain_interval"][0] <= sure["gain"] <= sure["gain_interval"][1]
    assert clf.calibration_ is not None and clf.calibration_.temperature == 1


def test_no_search_where_none_is_asked_for():
    clf = fit(clip_like(shots=4), selection="fixed")
    assert clf.selection_ == "fixed" and tuple(clf.selected_["blend"].values()) == auto.FIXED
    with pytest.raises(handful.ParameterError, match="'support' or 'fixed'"):
        fit(clip_like(), selection="best")


def test_without_images_it_is_zero_shot():
    features, _, text = toy()
    clf = handful.Auto().fit(class_names=NAMES, class_weights=text)
    zero = handful.ZeroShot().fit(class_names=NAMES, class_weights=text)
    same(clf.logits(features), zero.logits(features))


@pytest.mark.parametrize("counts", [(1, 0, 0), (1, 1, 0), (2, 1, 1), (9, 1, 3), (2, 0, 2)])
def test_few_and_unequal_images(counts: tuple[int, ...], tmp_path: Path):
    features, labels, text = toy(9)
    kept = [row for row in range(27) if row % 9 < counts[labels[row]]]
    clf = handful.Auto().fit(features[kept], labels[kept], class_names=NAMES, class_weights=text)
    logits = clf.logits(features)
    assert np.isfinite(logits).all() and clf.shots_ == counts
    same(handful.load(clf.save(tmp_path / "saved")).logits(features), logits)


def test_one_class():
    features, _, text = toy()
    clf = handful.Auto().fit(features[:3], [0, 0, 0], class_names=["cat"], class_weights=text[:1])
    assert clf.predict_proba(features).tolist() == [[1.0]] * len(features)


def test_equal_weights_are_none_and_unequal_classes_count_alike():
    features, labels, text = toy(8)
    kept = [*range(8), 8, 9, 16, 17]
    alike, by_images = (
        handful.Auto(balance=balance).fit(
            features[kept], labels[kept], class_names=NAMES, class_weights=text
        ).logits(features)
        for balance in (True, False)
    )  # fmt: skip
    assert np.abs(alike - by_images).max() > 0.01


@pytest.mark.parametrize("shots", [1, 2, 5])
def test_names_and_images_add_up_to_the_lead_of_the_answer(shots: int):
    given = clip_like(shots=shots, seed=3)
    head = fit(given).head_
    for x in given.x[:5]:
        logits = head.read(x[None])[0]
        answer, rival = logits.topk(2).indices.tolist()
        names, images = head.margin(x, answer, rival)
        assert len(images) == len(given.labels)
        assert float(names + images.sum()) == pytest.approx(float(logits[answer] - logits[rival]), abs=1e-3)


def test_the_images_that_decided_are_of_the_answer():
    given = clip_like(shots=5, seed=3)
    clf = fit(given)
    for row in range(0, len(given.x), 7):
        why = clf.explain(given.x[row][None].numpy(), top=3)
        assert why.names is not None and why.images is not None and why.names + why.images > 0
        assert why.support[0].class_name == why.predicted != why.rival
        assert f"rather than {why.rival}" in str(why)


# -- real features -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shots", "least"),
    [("dtd", 1, 49.0), ("dtd", 4, 58.5), ("dtd", 16, 68.0), ("caltech69", 2, 95.2)],
)
def test_on_clip_it_is_as_good_as_was_measured(shared: Path, name: str, shots: int, least: float):
    data = load_file(shared / f"clip_features/{name}.safetensors")
    order = torch.randperm(len(data["support"]), generator=torch.Generator().manual_seed(1))
    labels = data["support_labels"][order]
    rows = torch.cat([order[labels == row][:shots] for row in range(len(data["class_weights"]))])
    x, y = data["support"][rows].float(), data["support_labels"][rows].long()
    names = tuple(map(str, range(len(data["class_weights"]))))
    task = Task(Features(x[:, None]), y, names, data["class_weights"].float(), 100.0)
    learned = handful.Auto().learn(task)
    logits, truth = learned.head.read(data["test"].float()), data["test_labels"].long()
    assert 100 * float((logits.argmax(1) == truth).float().mean()) > least
    assert calibration_error(logits.softmax(1).numpy(), truth.numpy()) < 0.08

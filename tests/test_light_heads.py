"""ProLIP, the linear adapter, published CLAP, TaskRes, LP++ and the cross-modal probe: what papers say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from toys import NAMES, toy

import handful
from handful.backbones.base import final_projection
from handful.convex.probe import default_strength
from handful.estimator import Task
from handful.heads import LinearHead
from handful.methods.features.linear_probe.published import Prototypes, multipliers, pool_batches
from handful.methods.features.lp_plus_plus import Blend
from handful.methods.features.taskres import Residual
from handful.methods.towers.prolip import Projection
from handful.prompts import CLIP_LENGTH, TextFeatures
from handful.schedule import seeded
from handful.towers.pair import image_encoder

OURS = ("linear-adapter", "taskres", "lp-plus-plus", "cross-modal-probe")


def fitted(name: str, counts: tuple[int, ...] = (4, 4, 4), copies: int = 1, **given: object):
    features, labels, text = toy(max(counts, default=1), noise=0.5)
    kept = np.concatenate([np.flatnonzero(labels == row)[:count] for row, count in enumerate(counts)])
    x = features[kept][:, None].repeat(1, copies, 1)
    clf = handful.METHODS[name](**given)
    names = np.array(NAMES)[labels[kept]]
    return (
        clf.fit(handful.Features.from_array(x), names, class_names=NAMES, class_weights=text),
        features,
        text,
    )


# -- any support set --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*OURS, "linear-probe"])
@pytest.mark.parametrize("counts", [(1, 1, 1), (4, 0, 2), (7, 3, 1), (1, 0, 0)])
@pytest.mark.parametrize("views", [1, 2])
def test_any_numbers_of_images_and_views(name: str, counts: tuple[int, ...], views: int):
    quick = {"cross-modal-probe": {"iterations": 60}, "taskres": {"views": 0}}.get(name, {})
    clf, features, _ = fitted(name, counts, views, **quick)
    assert np.isfinite(clf.logits(features)).all()
    assert clf.predict(features).shape == (len(features),)


@pytest.mark.parametrize("solver", ["published", "convex"])
@pytest.mark.parametrize("method", ["linear-probe", "cross-modal-probe"])
def test_both_solvers_learn_with_a_missing_class(method: str, solver: str):
    given = {"iterations": 60} if method == "cross-modal-probe" else {"max_iter": 40}
    clf, features, _ = fitted(method, (6, 0, 3), solver=solver, **given)
    assert np.isfinite(clf.logits(features)).all()


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("linear-probe", {"strength": -1}), ("linear-probe", {"strength": "weak"}),
        ("linear-probe", {"solver": "sgd"}), ("linear-probe", {"constraint": "none"}),
        ("linear-probe", {"constraint": "adaptive"}), ("linear-probe", {"selection": "best"}),
        ("linear-adapter", {"strength": float("nan")}), ("linear-adapter", {"max_iter": 0}),
        ("taskres", {"alpha": 0}), ("taskres", {"lr": "fast"}), ("taskres", {"epochs": 0}),
        ("lp-plus-plus", {"epochs": 0}), ("cross-modal-probe", {"wise_ft": 1.5}),
        ("cross-modal-probe", {"batch_size": 1}), ("cross-modal-probe", {"solver": "adam"}),
        ("cross-modal-probe", {"selection": "support"}),
    ],
)  # fmt: skip
def test_parameters_are_checked(name: str, bad: dict[str, object]):
    with pytest.raises(handful.ParameterError, match=next(iter(bad))):
        fitted(name, **bad)


# -- zero-shot where they start ---------------------------------------------------------------------


def test_they_start_as_zero_shot():
    text = F.normalize(torch.randn(3, 8, generator=seeded(0)), dim=-1)
    x = torch.randn(5, 8, generator=seeded(1))
    expected = 100 * F.normalize(x, dim=-1) @ text.T
    for raw in (text, 9 * text):
        torch.testing.assert_close(Residual(raw, 0.5, 100.0)(x), expected)
        torch.testing.assert_close(Prototypes(raw, 100.0, torch.ones(3))(x), expected)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("linear-probe", {"strength": 1e8}), ("linear-adapter", {"strength": 1e8}),
        ("taskres", {"lr": 1e-9, "views": 0}), ("cross-modal-probe", {"iterations": 3, "lr": 1e-9}),
        ("cross-modal-probe", {"iterations": 3, "wise_ft": 0}),
        ("linear-probe", {"solver": "published", "max_iter": 3, "lr": 1e-9}),
    ],
)  # fmt: skip
def test_held_fast_they_stay_zero_shot(name: str, given: dict[str, object]):
    clf, features, text = fitted(name, **given)
    expected = 100 * F.normalize(features, dim=-1) @ text.T
    np.testing.assert_allclose(clf.logits(features), expected, atol=1e-2)


# -- CLAP -------------------------------------------------------------------------------------------


def test_the_default_strength_is_75_by_shots_and_scales():
    labels = torch.arange(3).repeat(4)
    assert default_strength(labels, 100.0) == pytest.approx(18.75)
    assert default_strength(labels, 15.0) == pytest.approx(18.75 * 0.15**2)
    clf, _, _ = fitted("linear-probe")
    assert clf.selected_["strength"] == pytest.approx(18.75)


def test_a_search_gives_a_strength_and_a_fit_by_it_is_the_same():
    clf, features, _ = fitted("linear-probe", (6, 6, 6), selection="support")
    assert clf.selection_ == "support" and clf.selected_["strength"] in [
        pytest.approx(12.5 * factor) for factor in (10, 3, 1, 0.3, 0.1, 0.03, 0.01)
    ]
    again, _, _ = fitted("linear-probe", (6, 6, 6), strength=clf.settled()["strength"])
    np.testing.assert_allclose(again.logits(features), clf.logits(features), atol=1e-4)


def test_multipliers_of_all_kinds():
    logits, labels = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), torch.tensor([0, 1])
    p = logits.softmax(1)
    first, second = float(p[0, 0]), float(p[1, 1])
    mean = (first + second) / 2
    expected = {
        "probability": [first, second, 1], "balanced": [1, 1, 1],
        "corrected": [first / mean, second / mean, 1], "constant": [mean] * 3,
    }  # fmt: skip
    for kind, values in expected.items():
        torch.testing.assert_close(
            multipliers(logits, labels, kind), torch.tensor(values, dtype=torch.float32)
        )


def test_an_epoch_of_the_pool_has_as_many_steps_as_the_images_make():
    x, labels = torch.zeros(20 * 600, 4), torch.zeros(20 * 600, dtype=torch.int64)
    batches = list(pool_batches(x, labels, 600, seeded(0), balance=False))
    assert [len(batch[0]) for batch in batches] == [256, 256]
    few = list(pool_batches(x[:40], labels[:40], 2, seeded(0), balance=True))
    assert [len(batch[0]) for batch in few] == [40]


def test_the_outer_step_of_the_adaptive_constraint():
    model = Prototypes(torch.eye(2), 100.0, torch.ones(2))
    model.weights.data += torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    model.adapt_lambdas()
    assert model.lambdas.tolist() == [1, 1]
    model.adapt_lambdas()
    assert model.lambdas.tolist() == [17, 1]


def test_given_class_weights_count_as_long_as_clips():
    units = F.normalize(torch.randn(3, 8, generator=seeded(0)), dim=-1)
    given = TextFeatures(units, torch.arange(3))
    torch.testing.assert_close(given.means_as_clips(100.0), CLIP_LENGTH * units)
    raw = TextFeatures(5 * units, torch.arange(3))
    torch.testing.assert_close(raw.means_as_clips(100.0), 5 * units)
    torch.testing.assert_close(raw.means_as_clips(15.0), CLIP_LENGTH * units)


# -- LP++ -------------------------------------------------------------------------------------------


def blend(weights: torch.Tensor | None = None, rows: torch.Tensor | None = None) -> Blend:
    features, labels, text = toy(4, noise=0.5)
    rows = torch.arange(len(labels)) if rows is None else rows
    x = F.normalize(features, dim=-1)[rows]
    return Blend(x, torch.as_tensor(labels)[rows], text, 100.0, torch.zeros(3), weights)


def test_lp_plus_plus_has_the_gradients_of_its_loss_and_collapses():
    model = blend()
    parts = [part.clone().requires_grad_() for part in (model.weight, model.bias, model.alpha)]
    logits = model.x @ parts[0].T + parts[1] + parts[2] * model.cosines
    loss = F.cross_entropy(logits, model.own.argmax(1))
    loss.backward()
    value, *found = model.gradients()
    assert value == pytest.approx(loss.item(), abs=1e-6)
    for ours, part in zip(found, parts, strict=True):
        torch.testing.assert_close(ours, part.grad, atol=1e-6, rtol=1e-4)
    for _ in range(12):
        model.step()
    features = toy(4, noise=0.5)[0]
    head = LinearHead(model.class_weights(), model.bias, unit=True)
    x = F.normalize(features, dim=-1)
    expected = x @ model.weight.T + model.bias + model.alpha * (x @ model.text.T)
    torch.testing.assert_close(head.read(features), expected, atol=1e-4, rtol=1e-4)


def test_lp_plus_plus_with_weights_is_that_of_repeated_images():
    rows = torch.tensor([0, 0, 1, 4, 5, 8])
    kept = torch.tensor([0, 1, 4, 5, 8])
    one, other = blend(torch.tensor([2.0, 1, 1, 1, 1]) * 5 / 6, kept), blend(None, rows)
    assert one.gradients()[0] != pytest.approx(0)
    torch.testing.assert_close(one.weight * 6 / 5, other.weight)
    one.weight = other.weight.clone()
    one.alpha = other.alpha.clone()
    for ours, theirs in zip(one.gradients(), other.gradients(), strict=True):
        torch.testing.assert_close(torch.as_tensor(ours), torch.as_tensor(theirs), atol=1e-5, rtol=1e-4)


# -- ProLIP and the linear adapter ------------------------------------------------------------------


def test_the_projection_is_the_backbones(tiny: handful.Backbone, support: handful.ImageSet):
    features = handful.encode(tiny, support)
    weight, bias = final_projection(image_encoder(tiny))
    torch.testing.assert_close(features.hidden @ weight + bias, features.values, atol=1e-5, rtol=1e-4)


def test_the_penalty_bends_nothing_at_the_start():
    start = torch.randn(6, 4, generator=seeded(0))
    model = Projection(start, torch.zeros(4), torch.eye(4), 100.0, 1e6)
    loss = model.loss(torch.randn(5, 6, generator=seeded(1)), torch.zeros(5, dtype=torch.int64))
    (strong,) = torch.autograd.grad(loss, model.projection)
    model.strength = 0.0
    loss = model.loss(torch.randn(5, 6, generator=seeded(1)), torch.zeros(5, dtype=torch.int64))
    torch.testing.assert_close(strong, torch.autograd.grad(loss, model.projection)[0])


@pytest.mark.parametrize("solver", ["published", "minimum"])
def test_prolip_held_fast_is_zero_shot_and_learns_when_let_go(
    solver: str, tiny: handful.Backbone, support: handful.ImageSet
):
    zero_shot = handful.ZeroShot(tiny).fit(class_names=support.class_names)
    held = handful.ProLIP(tiny, strength=1e9, solver=solver, lr=1e-9, views=2).fit(support)
    np.testing.assert_allclose(held.logits(support), zero_shot.logits(support), atol=1e-3)
    free = handful.ProLIP(tiny, strength=1e-4, solver=solver, lr=1e-2, epochs=60, views=0).fit(support)
    assert free.losses_[-1] < free.losses_[0]
    assert free.score(support) > zero_shot.score(support)


def test_prolips_minimum_is_below_what_adam_reaches(tiny: handful.Backbone, support: handful.ImageSet):
    given = {"strength": 1e-3, "views": 0}
    adam = handful.ProLIP(tiny, lr=1e-3, **given).fit(support)
    exact = handful.ProLIP(tiny, solver="minimum", **given).fit(support)
    assert min(exact.losses_) <= min(adam.losses_) + 1e-4


@pytest.mark.parametrize("name", ["prolip", "linear-adapter"])
def test_what_moves_images_serves_other_names(name: str, tiny: handful.Backbone, support: handful.ImageSet):
    clf = handful.METHODS[name](tiny, views=0).fit(support)
    other = clf.with_classes(["kiwi", "lime"])
    assert other.logits(support).shape == (len(support), 2)
    np.testing.assert_allclose(other.transform(support), clf.transform(support), atol=1e-6)


def test_prolip_needs_what_enters_the_projection(tiny: handful.Backbone):
    with pytest.raises(handful.DataError, match="give images"):
        handful.ProLIP(tiny).fit(torch.randn(4, tiny.joint_width), ["a", "a", "b", "b"])


# -- the cross-modal probe --------------------------------------------------------------------------


def test_the_convex_cross_modal_probe_weighs_images_and_prompts_alike():
    features, labels, text = toy(5, noise=0.5)
    prompts = TextFeatures(torch.cat([text, text + 0.1]), torch.arange(3).repeat(2))
    order = prompts.classes.argsort(stable=True)
    prompts = TextFeatures(prompts.values[order], prompts.classes[order])
    task = Task(
        handful.Features.from_array(features), torch.as_tensor(labels), tuple(NAMES), text, 20.0,
        text_features=prompts,
    )  # fmt: skip
    found = handful.CrossModalProbe(solver="convex").learn(task)
    w = found.head.class_weights.double().requires_grad_()
    x, words = F.normalize(features, dim=-1).double(), F.normalize(prompts.values, dim=-1).double()
    start = F.normalize(prompts.means(), dim=-1).double()
    loss = F.cross_entropy(20 * x @ w.T, torch.as_tensor(labels)) / 2
    loss = loss + F.cross_entropy(20 * words @ w.T, prompts.classes) / 2
    loss = loss + found.selected["strength"] * (w - start).square().sum(1).mean()
    (slope,) = torch.autograd.grad(loss, w)
    assert slope.norm() < 2e-2

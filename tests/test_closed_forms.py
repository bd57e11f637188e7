"""GDA, kernel ridge and SS-Text: what their formulas say must be so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from toys import NAMES, same, toy

import handful
from handful.extend import HeadContext
from handful.left_out.gda import Moments
from handful.methods.features.gda.gaussians import dimensionless, published
from handful.methods.features.kernel_ridge import regression

FORMS = {
    "gda": lambda **more: handful.GDA(**more),
    "gda-published": lambda **more: handful.GDA(form="published", **more),
    "rbf": lambda **more: handful.KernelRidge(**more),
    "linear": lambda **more: handful.KernelRidge(kernel="linear", **more),
    "proker": lambda **more: handful.KernelRidge(form="published", **more),
    "ss-text": lambda **more: handful.SSText(**more),
    "ss-text-plain": lambda **more: handful.SSText(form="plain", **more),
    "ss-text-plus": lambda **more: handful.SSText(form="plus", **more),
}
LINEAR = ("gda", "gda-published", "linear")


def fitted(clf: handful.FewShotClassifier, features: torch.Tensor, labels: np.ndarray, text: torch.Tensor):
    given = handful.Features.from_array(features)
    return clf.fit(given, labels, class_names=NAMES, class_weights=text)


def queries(seed: int = 5) -> torch.Tensor:
    return toy(20, seed=seed)[0]


def zero_shot(text: torch.Tensor, x: torch.Tensor) -> np.ndarray:
    return handful.ZeroShot().fit(class_names=NAMES, class_weights=text).logits(x)


# -- all of them ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "rows", [[0], [0, 1], [0, 4, 8], [0, 1, 2, 3, 4], [0, 0, 4, 4, 8, 8], list(range(12))], ids=str
)
@pytest.mark.parametrize("views", [1, 2])
def test_few_images_and_missing_classes_are_no_trouble(form: str, rows: list[int], views: int):
    features, labels, text = toy()
    values = torch.stack([features, features + 0.3 * torch.randn(12, 16)][:views], 1)
    clf = fitted(FORMS[form](), values[rows], labels[rows], text)
    assert np.isfinite(clf.logits(queries())).all()
    if max(np.bincount(labels[rows])) < 2:
        assert clf.selection_ == "fixed"


@pytest.mark.parametrize("form", FORMS)
def test_the_order_of_images_and_of_views_says_nothing(form: str):
    features, labels, text = toy()
    values = features[:, None] + 0.3 * torch.randn(12, 3, 16, generator=torch.Generator().manual_seed(1))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    one = fitted(FORMS[form](selection="fixed"), values, labels, text)
    other = fitted(FORMS[form](selection="fixed"), values[order].flip(1), labels[order.numpy()], text)
    same(one.logits(queries()), other.logits(queries()))


@pytest.mark.parametrize("form", ["gda", "gda-published", "rbf", "linear", "proker"])
def test_what_the_images_say_adds_up(form: str):
    features, labels, text = toy()
    values = torch.stack([features, features.roll(1, 1)], 1)
    clf, x = fitted(FORMS[form](selection="fixed"), values, labels, text), queries()[0]
    head = clf.head_
    said = torch.zeros(3).index_add_(0, head.labels, head.evidence(x))
    if "gda" in form:
        parts = head.weight - head.scale * head.class_weights
        np.testing.assert_allclose(said, parts @ F.normalize(x, dim=0), rtol=1e-3, atol=1e-4)
    why = clf.explain(x[None])
    assert 1 <= len(why.support) <= 5 and all(one.share > 0 for one in why.support)
    assert clf.head_.support.directions().shape == (12, 16)


@pytest.mark.parametrize("form", ["gda", "rbf", "linear", "ss-text"])
def test_shots_that_are_left_out_choose_well(form: str):
    """With names that say nothing the images decide, and with images that say nothing the names."""
    features, labels, _ = toy(6, noise=1.0)
    test, truth, _ = toy(60, seed=9, noise=1.0)
    nothing = F.normalize(torch.randn(3, 16, generator=torch.Generator().manual_seed(3)), dim=-1)
    poor, fixed = (
        fitted(FORMS[form](selection=word), features, labels, nothing).score(test, truth)
        for word in ("support", "fixed")
    )
    assert poor >= fixed - 0.02
    names = F.normalize(torch.randn(3, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    noisy, labels, _ = toy(3, noise=3.0)
    clf = fitted(FORMS[form](), noisy, labels, names)
    assert clf.selection_ == "support"
    assert clf.score(test, truth) >= 0.9 * np.mean(zero_shot(names, test).argmax(1) == truth)


@pytest.mark.parametrize("form", FORMS)
def test_settled_parameters_fit_the_same_again(form: str):
    features, labels, text = toy(6)
    clf = fitted(FORMS[form](), features, labels, text)
    again = fitted(type(clf)(**clf.settled()), features, labels, text)
    np.testing.assert_array_equal(again.logits(queries()), clf.logits(queries()))


@pytest.mark.parametrize("form", ["gda", "rbf", "linear", "proker"])
def test_numbers_of_validation_images_stay_when_images_come(form: str):
    features, labels, text = toy()
    seen, truth, _ = toy(8, seed=4)
    clf = FORMS[form](selection="val").fit(
        features[1:], labels[1:], class_names=NAMES, class_weights=text, validation=(seen, truth)
    )
    chosen = dict(clf.selected_)
    clf.add_images(NAMES[0], features[:1])
    assert clf.selected_ == chosen and any("before" in note for note in clf.notes_)
    fixed = type(clf)(**clf.settled())
    rows = [*range(1, 12), 0]
    same(clf.logits(queries()), fitted(fixed, features[rows], labels[rows], text).logits(queries()))


@pytest.mark.parametrize(
    ("clf", "match"),
    [
        (handful.GDA(alpha=-1), "alpha=-1"),
        (handful.GDA(form="other"), "form='other'"),
        (handful.GDA(form="base-to-new", selection="fixed"), "64 vectors"),
        (handful.GDA(form="base-to-new"), "selection='support'"),
        (handful.KernelRidge(lam=0), "lam=0"),
        (handful.KernelRidge(beta=0), "beta=0"),
        (handful.KernelRidge(rho=-0.1), "rho=-0.1"),
        (handful.KernelRidge(kernel="cubic"), "kernel='cubic'"),
        (handful.KernelRidge(form="other"), "form='other'"),
        (handful.KernelRidge(form="published", rho=1.0), "rho=1.0"),
        (handful.KernelRidge(form="published", ranges="mine"), "ranges='mine'"),
        (handful.SSText(kappa=0), "kappa=0"),
        (handful.SSText(form="minus"), "form='minus'"),
        (handful.SSText(selection="test"), "selection='test'"),
    ],
)
def test_parameters_are_checked(clf: handful.FewShotClassifier, match: str):
    features, labels, text = toy()
    rows = (
        labels < 2
        if clf.get_params().get("form") == "base-to-new" and clf.selection == "fixed"
        else labels < 3
    )
    with pytest.raises(handful.HandfulError, match=match):
        fitted(clf, features[rows], labels[rows], text)


# -- GDA ------------------------------------------------------------------------------------------


def test_gda_of_no_weight_is_zero_shot():
    features, labels, text = toy()
    for form in ("dimensionless", "published"):
        clf = fitted(handful.GDA(alpha=0, form=form, selection="fixed"), features, labels, text)
        same(clf.logits(queries()), zero_shot(text, queries()))


def test_published_gda_of_one_image_of_each_class_ranks_as_zero_shot():
    features, labels, text = toy(1)
    clf = fitted(handful.GDA(form="published", alpha=10.0), features, labels, text)
    expected = zero_shot(text, queries()) - 10 * np.log(3)
    same(clf.logits(queries()), expected)


def test_gda_of_one_image_of_each_class_looks_for_the_nearest_mean():
    features, labels, text = toy(1)
    clf, x = fitted(handful.GDA(alpha=2.0), features, labels, text), F.normalize(queries(), dim=-1)
    means = F.normalize(features, dim=-1)
    same(clf.logits(x), 100 * (x @ text.T + 2 * (x @ means.T - 0.5)).numpy())


def test_views_that_come_twice_change_nothing():
    features, labels, text = toy()
    values = torch.stack([features, features.roll(1, 1)], 1)
    twice = values.repeat(1, 2, 1)
    for form, stays in (("dimensionless", True), ("published", False)):
        one, two = (
            fitted(handful.GDA(alpha=1.0, form=form, selection="fixed"), x, labels, text).logits(queries())
            for x in (values, twice)
        )
        assert np.allclose(one, two, rtol=1e-4, atol=1e-3) == stays


def test_the_two_precisions_are_one_up_to_a_factor():
    features, labels, _ = toy()
    moments = Moments.of(F.normalize(features, dim=-1)[:, None], torch.from_numpy(labels), 3)
    ours, theirs = dimensionless(moments), published(moments)
    assert ours.ridge == pytest.approx(theirs.ridge)
    shrinkage = 16 / 11
    assert ours.factor / theirs.factor == pytest.approx((1 + shrinkage) * moments.trace / 16 / 16)


def test_equal_variances_give_the_identity():
    x = torch.cat([torch.eye(4), -torch.eye(4)])[:, None].double()
    moments = Moments.of(x, torch.zeros(8, dtype=torch.int64), 1)
    rule = dimensionless(moments)
    precision = rule.factor * torch.linalg.inv(moments.scatter + rule.ridge * torch.eye(4))
    torch.testing.assert_close(precision, torch.eye(4).double())


def test_a_class_without_images_is_neither_favoured_nor_held_back():
    features, labels, text = toy()
    few = labels > 0
    head = fitted(handful.GDA(selection="fixed"), features[few], labels[few], text).head_
    added = head.weight - head.scale * head.class_weights
    torch.testing.assert_close(added[0], added[1:].mean(0), rtol=1e-4, atol=1e-4)


def test_counts_are_a_prior_where_images_count_alike():
    features, labels, text = toy(20, noise=1.0)
    rows = np.concatenate([np.arange(20), [20, 21], [40, 41]])
    alike, by_size = (
        fitted(handful.GDA(alpha=0.2, selection="fixed", balance=balance), features[rows], labels[rows], text)
        for balance in (True, False)
    )
    gap = by_size.head_.bias - alike.head_.bias
    assert gap[0] > 0 > gap[1] and gap[1] == pytest.approx(float(gap[2]), rel=1e-4)


def test_new_classes_are_served_beside_base_ones():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 16, generator=generator)
    labels = np.repeat([0, 1], 40)
    features = centres[labels] + 0.4 * torch.randn(80, 16, generator=generator)
    text = F.normalize(centres + 0.5 * torch.randn(3, 16, generator=generator), dim=-1)
    clf = fitted(handful.GDA(form="base-to-new", selection="fixed"), features, labels, text)
    base = handful.GDA(form="base-to-new", selection="fixed").fit(
        features, labels, class_names=NAMES[:2], class_weights=text[:2]
    )
    x = queries()
    same(clf.logits(x)[:, :2], base.logits(x))
    with pytest.raises(handful.DataError, match="two vectors"):
        fitted(clf, features[[0, 40, 41]], labels[[0, 40, 41]], text)


# -- kernel ridge ---------------------------------------------------------------------------------


def test_a_ridge_of_no_weight_is_zero_shot():
    features, labels, text = toy()
    for kernel in ("rbf", "linear"):
        clf = fitted(handful.KernelRidge(rho=0, kernel=kernel, selection="fixed"), features, labels, text)
        same(clf.logits(queries()), zero_shot(text, queries()))


def test_a_ridge_that_is_nothing_goes_through_its_labels():
    """At rho = 1 it is the mean of a Gaussian process without noise."""
    features, labels, text = toy()
    clf = fitted(handful.KernelRidge(rho=1, lam=1e-8, beta=5.0, selection="fixed"), features, labels, text)
    np.testing.assert_allclose(clf.logits(features), 100 * np.eye(3)[labels], atol=0.1)


def test_the_published_form_is_lam_times_the_textbook():
    features, labels, text = toy()
    given = {"beta": 2.0, "lam": 0.05, "selection": "fixed"}
    theirs = fitted(handful.KernelRidge(form="published", **given), features, labels, text)
    ours = fitted(handful.KernelRidge(rho=0.05, **given), features, labels, text)
    np.testing.assert_allclose(100 * theirs.logits(queries()), ours.logits(queries()), rtol=1e-4, atol=1e-3)


def test_a_linear_kernel_needs_no_keys():
    features, labels, text = toy()
    clf = fitted(handful.KernelRidge(kernel="linear", selection="fixed"), features, labels, text)
    x, q = F.normalize(features, dim=-1).double(), F.normalize(queries(), dim=-1).double()
    residuals = F.one_hot(torch.from_numpy(labels)) - x @ text.double().T
    expected = q @ text.double().T + 0.1 * q @ x.T @ torch.linalg.solve(
        x @ x.T + 0.1 * torch.eye(12), residuals
    )
    same(clf.logits(queries()), (100 * expected).numpy())


@pytest.mark.parametrize("kernel", ["rbf", "linear"])
def test_a_ridge_is_that_of_repeated_images(kernel: str):
    features, labels, text = toy(6)
    rows = np.concatenate([np.arange(6), [6, 7, 8], [12, 13]])
    more = np.concatenate([np.arange(6), [6, 7, 8] * 2, [12, 13] * 3])
    given = {"kernel": kernel, "selection": "fixed", "beta": 2.0}
    one = fitted(handful.KernelRidge(lam=0.11, **given), features[rows], labels[rows], text)
    two = fitted(handful.KernelRidge(lam=0.18, **given), features[more], labels[more], text)
    same(one.logits(queries()), two.logits(queries()))


def test_a_system_that_is_too_large_says_so(monkeypatch: pytest.MonkeyPatch):
    features, labels, text = toy()
    monkeypatch.setattr(regression, "MOST_ROWS", 10)
    with pytest.raises(handful.ParameterError, match="kernel='linear'"):
        fitted(handful.KernelRidge(), features, labels, text)
    fitted(handful.KernelRidge(kernel="linear"), features, labels, text)
    monkeypatch.undo()
    monkeypatch.setattr("handful.methods.features.kernel_ridge.MOST_SEARCHED", 10)
    clf = fitted(handful.KernelRidge(), features, labels, text)
    assert clf.selection_ == "fixed" and any("kernel='linear'" in note for note in clf.notes_)


def test_damaged_ridges_are_refused(tmp_path: Path):
    features, labels, text = toy()
    head = fitted(handful.KernelRidge(), features, labels, text).head_
    context = HeadContext(tuple(NAMES), None)
    for tensors, settings in (
        (head.tensors(), {**head.settings(), "beta": -1.0}),
        (head.tensors(), {**head.settings(), "beta": 0.0}),
        ({**head.tensors(), "labels": head.labels + 3}, head.settings()),
        ({**head.tensors(), "coefficients": head.parts["coefficients"][:3]}, head.settings()),
    ):
        with pytest.raises(handful.CheckpointError):
            type(head).restore(tensors, settings, context)


# -- SS-Text --------------------------------------------------------------------------------------


def test_a_name_that_is_worth_all_images_is_zero_shot():
    features, labels, text = toy()
    clf = fitted(handful.SSText(kappa=1e9, selection="fixed"), features, labels, text)
    same(clf.logits(queries()), zero_shot(text, queries()))


def test_plain_class_weights_know_nothing_of_other_classes():
    features, labels, text = toy()
    clf = fitted(handful.SSText(form="plain", balance=False), features, labels, text)
    few = handful.SSText(form="plain", balance=False).fit(
        features[:8], labels[:8], class_names=NAMES[:2], class_weights=text[:2]
    )
    same(clf.logits(queries())[:, :2], few.logits(queries()))


def test_a_class_without_images_is_found_across_the_gap_of_images_and_names():
    """Images are nearer to each other than to names: a class of names alone would never win."""
    generator = torch.Generator().manual_seed(0)
    centres, cone = 0.5 * torch.randn(3, 16, generator=generator), 3 * torch.randn(16, generator=generator)
    labels = np.repeat([0, 1, 2], 20)
    features = cone + centres[labels] + 0.1 * torch.randn(60, 16, generator=generator)
    axis = F.normalize(cone, dim=0)
    text = F.normalize(centres - (centres @ axis)[:, None] * axis, dim=-1)
    few, skewed = np.r_[0:10, 20:30], np.r_[0:20, 20:22, 40:42]  # none of the third class; and 20, 2, 2
    for rows in (few, skewed):
        alike, by_size = (
            fitted(handful.SSText(selection="fixed", balance=balance), features[rows], labels[rows], text)
            for balance in (True, False)
        )
        found = [np.mean(clf.logits(features).argmax(1) == labels) for clf in (alike, by_size)]
        assert found[0] > max(0.7, found[1])

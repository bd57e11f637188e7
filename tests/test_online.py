"""Classes and images that come and go, why an answer is given, and what a hostile reading found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from toys import NAMES, fit, same, toy

import handful
from handful.protocols import coop_probe_draw, coop_probe_draws
from handful.refiner import Refiner

# -- classes that come and go ---------------------------------------------------------------------

ONLINE = [
    handful.Auto,
    lambda backbone: handful.Auto(backbone, selection="fixed"),
    handful.ZeroShot,
    handful.TipAdapter,
    handful.APE,
    lambda backbone: handful.TipAdapter(backbone, selection="support"),
    lambda backbone: handful.MetaAdapter(backbone, views=2),
    lambda backbone: handful.GDA(backbone, views=2),
    lambda backbone: handful.GDA(backbone, form="published", selection="fixed"),
    lambda backbone: handful.KernelRidge(backbone, views=2),
    lambda backbone: handful.KernelRidge(backbone, kernel="linear", selection="fixed"),
    lambda backbone: handful.KernelRidge(backbone, form="published", views=2),
]


def listed(support: handful.ImageSet) -> tuple[list[str], list[str]]:
    return [str(item) for item in support.items], [support.class_names[label] for label in support.labels]


def alike(left: object, right: object) -> bool:
    """Whether two facts are the same, numbers to five digits."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(alike(left[key], right[key]) for key in left)
    if isinstance(left, float):
        return left == pytest.approx(right, rel=1e-4, abs=1e-4)
    return left == right


@pytest.mark.parametrize("make", ONLINE)
def test_what_comes_and_goes_equals_a_fresh_fit(
    make, mini: handful.Backbone, support: handful.ImageSet, held_out: handful.ImageSet, tmp_path: Path
):
    items, names = listed(support)
    first, last = support.class_names[0], support.class_names[-1]
    early = [row for row, name in enumerate(names) if name != last]
    held = [row for row, name in enumerate(names) if name == first][-1]
    start = [row for row in early if row != held]
    added = [row for row, name in enumerate(names) if name == last]
    order = [*support.class_names[:-1], last]
    clf = make(mini).fit([items[r] for r in start], [names[r] for r in start], class_names=order[:-1])
    clf.save(tmp_path / "before")
    clf = handful.load(tmp_path / "before")
    assert clf.add_class(last, [items[r] for r in added]) is clf
    clf.add_images(first, items[held])
    rows = [*start, *added, held]
    fresh = make(mini).fit([items[r] for r in rows], [names[r] for r in rows], class_names=order)
    np.testing.assert_allclose(
        clf.decision_function(held_out), fresh.decision_function(held_out), rtol=1e-5, atol=1e-4
    )
    left, right = clf.info(), fresh.info()
    found, expected = (facts.pop("calibration") or {} for facts in (left, right))
    assert found == pytest.approx(expected, rel=1e-4)
    for facts in (left, right):
        facts.pop("saved"), facts.pop("notes"), facts["head"].pop("scale")
        for name in ("alpha", "beta", "lam", "rho", "names", "adapter", "probe", "ridge"):
            facts["head"].pop(name, None)
        for name in ("alpha", "beta", "lam", "rho"):
            facts["selected"].pop(name, None)
    assert alike(left, right)
    clf.remove_class(first)
    stay = [row for row in rows if names[row] != first]
    fresh = make(mini).fit([items[r] for r in stay], [names[r] for r in stay], class_names=order[1:])
    np.testing.assert_allclose(
        clf.decision_function(held_out), fresh.decision_function(held_out), rtol=1e-5, atol=1e-4
    )
    clf.save(tmp_path / "after")
    again = handful.load(tmp_path / "after")
    np.testing.assert_array_equal(again.predict(held_out), clf.predict(held_out))


def test_changes_that_are_refused_leave_the_classifier_whole(
    mini: handful.Backbone, support: handful.ImageSet
):
    clf = handful.TipAdapter(mini).fit(support)
    before = clf.decision_function(support)
    bad = [
        lambda: clf.add_class(support.class_names[0].upper(), support.items[:1]),
        lambda: clf.add_class("", support.items[:1]),
        lambda: clf.add_class("new", "absent.png"),
        lambda: clf.add_class("new", np.ones((1, 3), np.float32)),
        lambda: clf.add_class("new", class_weight=np.ones(3)),
        lambda: clf.add_images("unknown", support.items[:1]),
        lambda: clf.remove_class("unknown"),
    ]
    for change in bad:
        with pytest.raises((handful.DataError, handful.ParameterError)):
            change()
    np.testing.assert_array_equal(clf.decision_function(support), before)
    trained = fit(handful.TipAdapterF(epochs=1, views=0))
    with pytest.raises(handful.ParameterError, match="train again"):
        trained.add_images("cat", np.ones((1, 16), np.float32))
    one = handful.ZeroShot(mini).fit(class_names=["only"])
    with pytest.raises(handful.DataError, match="only class"):
        one.remove_class("only")


def test_given_class_weights_need_one_for_a_new_class():
    clf = fit(handful.TipAdapter())
    with pytest.raises(handful.ParameterError, match="class_weight="):
        clf.add_class("owl", np.ones((1, 16), np.float32))
    clf.add_class("owl", np.ones((1, 16), np.float32), class_weight=np.ones(16))
    assert clf.predict(np.ones((1, 16), np.float32)).tolist() == ["owl"]
    assert (clf.class_names_, clf.shots_) == (("cat", "dog", "owl", "red panda"), (4, 4, 1, 4))


def test_numbers_that_validation_chose_stay_with_a_note():
    seen, truth, _ = toy(8, seed=4)
    clf = fit(handful.TipAdapter(selection="val"), validation=(seen, truth))
    alpha = clf.selected_["alpha"]
    clf.add_images("cat", toy()[0][:1])
    assert clf.selected_["alpha"] == alpha
    assert any("before" in note for note in clf.notes_)


def changed_and_fresh(make, changes: list) -> tuple[handful.FewShotClassifier, handful.FewShotClassifier]:
    """A classifier whose images came in order, and one that is fitted to all of them at once."""
    features, labels, text = toy(6)
    given = {"class_names": NAMES, "class_weights": text}
    start, *more = changes
    clf = make().fit(features[start], labels[start], **given)
    for row in more:
        clf.add_images(NAMES[labels[row]], features[row : row + 1])
    rows = [*start, *more]
    return clf, make().fit(features[rows], labels[rows], **given)


@pytest.mark.parametrize(
    "changes",
    [
        [[0, 1, 2, 6, 7, 12], 8, 3, 13],  # unequal
        [[0, 1, 6, 7], 2, 8],  # a class without images
        [[0, 6, 12], 1, 7],  # one image at first
        [[0], 6],
        [[0, 6], 12],
    ],
)
@pytest.mark.parametrize("balance", [True, False])
def test_auto_changed_is_auto_fitted_afresh(changes: list, balance: bool, tmp_path: Path):
    clf, fresh = changed_and_fresh(lambda: handful.Auto(balance=balance), changes)
    x = toy(seed=5)[0]
    np.testing.assert_allclose(clf.predict_proba(x), fresh.predict_proba(x), atol=1e-5)
    assert clf.selection_ == fresh.selection_
    assert alike(clf.selected_, fresh.selected_)
    assert clf.notes_ == fresh.notes_
    assert (clf.calibration_ is None) == (fresh.calibration_ is None)
    if clf.calibration_ and fresh.calibration_:  # what the fit held out comes again
        assert alike(clf.calibration_.facts(), fresh.calibration_.facts())
        torch.testing.assert_close(
            clf.calibration_.tensors(), fresh.calibration_.tensors(), rtol=1e-5, atol=1e-5
        )
    clf.save(tmp_path / "clf")
    np.testing.assert_allclose(
        handful.load(tmp_path / "clf").predict_proba(x), clf.predict_proba(x), atol=1e-6
    )


def test_prediction_sets_come_again_after_a_change(mini: handful.Backbone, support: handful.ImageSet):
    clf = handful.Auto(mini).fit(support)
    clf.remove_class(support.class_names[0])
    sets = clf.predict_set(support, coverage=0.8)
    assert {name for own in sets for name in own} <= set(support.class_names[1:])
    assert not any("calibrate again" in note for note in clf.notes_)


def test_the_error_of_a_method_that_trains_names_those_that_do_not():
    with pytest.raises(handful.ParameterError, match=r"training for auto, zero-shot, gda, .*meta-adapter"):
        fit(handful.LinearProbe()).remove_class("cat")


# -- why ------------------------------------------------------------------------------------------


def test_a_cache_names_the_images_that_decided(mini: handful.Backbone, support: handful.ImageSet):
    clf = handful.TipAdapter(mini, beta=20.0).fit(support)
    why = clf.explain(support.items[5], top=3)
    assert why.support[0].image == str(support.items[5])
    assert why.support[0].class_name == support.class_names[support.labels[5]]
    shares = [evidence.share for evidence in clf.explain(support.items[5], top=1000).support]
    assert sum(shares) == pytest.approx(1)
    assert abs(why.names) + abs(why.images) == pytest.approx(1)
    assert why.rival == list(why.margins)[1]
    assert f"rather than {why.rival}: " in str(why)
    assert shares == sorted(shares, reverse=True)
    logits = clf.decision_function(support.items[5])[0]
    first, second = np.sort(logits)[::-1][:2]
    assert why.predicted == clf.predict(support.items[5])[0]
    assert why.margins[why.predicted] == pytest.approx(first - second, abs=1e-4)
    assert sum(margin > 0 for margin in why.margins.values()) == 1
    with pytest.raises(handful.DataError, match="one"):
        clf.explain(list(support.items[:2]))


def test_auto_names_what_decided(mini: handful.Backbone, support: handful.ImageSet, held_out):
    clf = handful.Auto(mini).fit(support)
    own = 0
    for image in held_out.items[::15]:
        why = clf.explain(image, top=4)
        assert abs(why.names) + abs(why.images) == pytest.approx(1)
        assert why.names + why.images > 0
        assert why.rival not in [said.class_name for said in why.support]
        assert all(0 < said.share <= 1 for said in why.support)
        own += sum(said.class_name == why.predicted for said in why.support[:2])
    assert own >= 1.5 * len(held_out.items[::15])  # of two images, mostly both are of the answer's class


@pytest.mark.parametrize("counts", [(4, 4, 4), (5, 2, 1), (1, 1, 1), (3, 0, 2)])
def test_parts_of_the_lead_add_up(counts: tuple[int, ...]):
    features, labels, text = toy(5)
    rows = np.concatenate([np.flatnonzero(labels == c)[:count] for c, count in enumerate(counts)])
    given = {"class_names": NAMES, "class_weights": text}
    head = handful.Auto().fit(features[rows], labels[rows], **given).head_
    for x in toy(seed=7)[0]:
        logits = head.read(x[None])[0]
        names, images = head.margin(x, 0, 2)
        torch.testing.assert_close(names + images.sum(), logits[0] - logits[2], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("make", [handful.MetaAdapter, handful.ZeroShot, handful.LinearProbe])
def test_every_method_gives_margins(make, mini: handful.Backbone, support: handful.ImageSet):
    why = make(mini).fit(support).explain(support.items[0])
    assert next(iter(why.margins)) == why.predicted
    assert len(why.margins) == 10
    assert len(why.support) == (4 if make is handful.MetaAdapter else 0)  # images of its class speak for it
    assert (why.names is None) == (make is not handful.MetaAdapter)


def test_shares_of_a_refined_classifier_add_up(mini: handful.Backbone, support: handful.ImageSet):
    """The class weight's own part and the images' parts make up its cosine, before normalising."""
    clf = handful.MetaAdapter(mini).fit(support)
    head, x = clf.head_, handful.encode(mini, support.items[:1]).directions()[0]
    said = head.evidence(x)
    sums = torch.zeros(10).index_add_(0, head.labels, said)
    assert float(sums.abs().max()) < 1


def test_the_commands(call, few_digits: Path, tmp_path: Path):
    network = tmp_path / "network.safetensors"
    code, text, _ = call("meta-train", few_digits / "train", "--epochs", 1, "--shots", 2, "--out", network)
    assert code == 0, text
    assert network.exists()
    out = tmp_path / "model"
    words = ["fit", few_digits / "train", "--shots", 2, "--out", out, "--method", "meta-adapter"]
    assert call(*words, "-p", f"refiner={network}")[0] == 0
    image = next((few_digits / "test" / "eight").iterdir())
    code, text, _ = call("explain", out, image, "--top", 2)
    assert code == 0
    assert text.count("share") == 2
    assert call("explain", out)[0] == 1
    words = ["fit", few_digits / "train", "--shots", 2, "--method", "tip-adapter", "-p", "selection=val"]
    code, _, err = call(*words, "--out", out)
    assert (code, "validation=" in err) == (1, True)
    code, _, _ = call(*words, "--validation", few_digits / "test", "--out", out)
    assert code == 0


# -- what a hostile reading found -----------------------------------------------------------------


def test_online_changes_use_the_parameters_of_the_fit(mini: handful.Backbone, support: handful.ImageSet):
    items, names = listed(support)
    clf = handful.TipAdapter(mini, views=2).fit(items[:-1], names[:-1], class_names=support.class_names)
    clf.set_params(views=0, alpha=9.0).add_images(names[-1], items[-1])
    fresh = handful.TipAdapter(mini, views=2).fit(items, names, class_names=support.class_names)
    same(clf.decision_function(support), fresh.decision_function(support))
    assert clf.get_params()["views"] == 0  # what was set since stays set


def test_an_image_set_of_other_classes_is_not_added(mini: handful.Backbone, support: handful.ImageSet):
    clf = handful.TipAdapter(mini).fit(support)
    with pytest.raises(handful.DataError, match="one class at a time"):
        clf.add_images(support.class_names[0], support)
    clf.add_images(support.class_names[0], support[support.labels == 0])
    assert clf.shots_[0] == 8


def test_the_last_images_may_leave_and_names_stay_apart():
    features, labels, text = toy()
    given = {"class_names": NAMES, "class_weights": text}
    clf = handful.TipAdapter(selection="support").fit(features[:4], ["cat"] * 4, **given)
    assert clf.remove_class("cat").selection_ == "fixed"
    clf = handful.TipAdapter().fit(features, labels, **given)
    clf.remove_class("cat").add_images("dog", features[:2])
    assert len(set(clf.support_)) == len(clf.support_) == 10


def test_no_images_at_all_for_meta_adapter(mini: handful.Backbone):
    clf = handful.MetaAdapter(mini).fit(class_names=["cat", "dog"])
    zero = handful.ZeroShot(mini).fit(class_names=["cat", "dog"])
    x = np.random.default_rng(0).normal(size=(4, 256)).astype(np.float32)
    np.testing.assert_allclose(clf.decision_function(x), zero.decision_function(x), atol=1e-4)


def test_shares_are_parts_of_the_cosine(mini: handful.Backbone, support: handful.ImageSet):
    clf = handful.MetaAdapter(mini).fit(support)
    head, x = clf.head_, handful.encode(mini, support.items[:1]).directions()[0]
    said = torch.zeros(10).index_add_(0, head.labels, head.evidence(x))
    text = head.class_weights
    keys = torch.cat([text[:, None], torch.stack([head.keys[head.labels == c] for c in range(10)])], 1)
    attention, gate = head.refiner.attention(text, keys, None), head.refiner.gate(text)[:, 0]
    length = (text + gate[:, None] * (attention[:, None] @ keys)[:, 0]).norm(dim=1)
    own = (1 + gate * attention[:, 0]) * (text @ x) / length
    torch.testing.assert_close(said + own, head.refined @ x)


def test_losses_are_those_of_the_model_that_was_kept():
    seen, truth, _ = toy(8, seed=4)
    clf = fit(handful.ClipAdapter(selection="val", epochs=5, views=0), validation=(seen, truth))
    ratio = clf.selected_["trained_at"]
    alone = fit(handful.ClipAdapter(selection="fixed", alpha=ratio, epochs=5, views=0))
    assert clf.losses_ == alone.losses_


def test_fresh_crops_for_those_that_train(mini: handful.Backbone, support: handful.ImageSet):
    few = support[np.arange(0, len(support), 2)]
    for make in (handful.ClipAdapter, handful.TipAdapterF):
        clf = make(mini, views="online", epochs=1).fit(few)
        assert clf.score(few) > 0.2


def test_a_network_may_be_given_as_it_is(mini: handful.Backbone, support: handful.ImageSet, tmp_path: Path):
    network = handful.meta_train(mini, support, shots=np.int64(2), queries=1, epochs=1, views=0)
    network.save(tmp_path / "network")
    clf = handful.MetaAdapter(mini, refiner=network).fit(support)
    clf.save(tmp_path / "clf")
    again = handful.load(tmp_path / "clf")
    np.testing.assert_array_equal(again.predict(support), clf.predict(support))
    other = handful.Features.from_array(np.ones((2, 256), np.float32), "another")
    with pytest.raises(handful.FingerprintError):
        handful.MetaAdapter(refiner=network).fit(other, AB, class_weights=np.ones((2, 256), np.float32))


AB = ["a", "b"]


@pytest.mark.parametrize(
    "change",
    [
        lambda w, f, y, r: (w[0], f, r, y),
        lambda w, f, y, r: (w[:, :3], f, r, y),
        lambda w, f, y, r: (w, f, r, y + 1),
        lambda w, f, y, r: (w, f, r, y - 1),
        lambda w, f, y, r: (w, f, r, y[:4]),
        lambda w, f, y, r: (w, f, r, y + 0.5),
        lambda w, f, y, r: (w, f[:, :3], r, y),
        lambda w, f, y, r: (w, f, r, None),
    ],
)
def test_refine_checks_what_it_is_given(change, refiner: Refiner):
    features, labels, text = toy()
    found = handful.refine(text.numpy(), features.double().numpy(), refiner, labels.tolist())
    torch.testing.assert_close(found, handful.refine(text, features, refiner, torch.as_tensor(labels)))
    with pytest.raises(handful.DataError):
        handful.refine(*change(text, features, labels, refiner))


@pytest.mark.parametrize(
    "act",
    [
        lambda: fit(handful.TipAdapter(ranges=[1])),
        lambda: fit(handful.TipAdapter(alpha=1e40)),
        lambda: fit(handful.MetaAdapter(refiner=5)),
        lambda: fit(handful.ClipAdapter(side=["image"])),
        lambda: fit(handful.ClipAdapter(selection="val", learn_ratio=True)),
        lambda: fit(handful.TipAdapter(selection="val"), validation=(toy()[0][:0], [])),
        lambda: fit(handful.TipAdapter(selection="val"), validation=(toy()[0][:1], 0)),
        lambda: fit(handful.TipAdapter(selection="val"), validation=(toy()[0][:2], [["a"], ["b", "c"]])),
        lambda: fit(handful.TipAdapter()).add_class("owl", class_weight="abc"),
        lambda: fit(handful.TipAdapter()).add_class("owl", class_weight=["a"]),
        lambda: handful.meta_train("mini", ["a.png"]),
        lambda: handful.load_refiner(None),
    ],
)  # fmt: skip
def test_bad_parameters_end_in_one_sentence(act):
    with pytest.raises((handful.ParameterError, handful.DataError)):
        act()


@pytest.mark.parametrize(
    ("key", "value"), [("shots", ["a", "b", "c"]), ("shots", [1]), ("selection", "zz"), ("side", ["image"])]
)
def test_damaged_facts(key: str, value: object, tmp_path: Path):
    import json

    clf = fit(handful.ClipAdapter(selection="fixed", epochs=1, views=0))
    clf.save(tmp_path / "clf")
    facts = json.loads((tmp_path / "clf" / "head.json").read_text())
    (facts["parameters"] if key == "side" else facts)[key] = value
    (tmp_path / "clf" / "head.json").write_text(json.dumps(facts))
    with pytest.raises(handful.CheckpointError):
        handful.load(tmp_path / "clf")


def test_coops_probe_draws_are_numpys_global_ones(support: handful.ImageSet):
    state = np.random.get_state()  # noqa: NPY002
    try:
        np.random.seed(3)  # noqa: NPY002
        train = [np.random.choice(np.flatnonzero(support.labels == c), 3, replace=False) for c in range(10)]  # noqa: NPY002
        val = [np.random.choice(np.flatnonzero(support.labels == c), 3, replace=False) for c in range(10)]  # noqa: NPY002
    finally:
        np.random.set_state(state)  # noqa: NPY002
    rows, some = coop_probe_draw(support, support, 3, 3)
    assert rows.tolist() == np.concatenate(train).tolist()
    assert some.tolist() == np.concatenate(val).tolist()


def test_coops_probe_wants_one_order_of_classes(support: handful.ImageSet):
    turned = handful.ImageSet(support.items, 9 - support.labels, support.class_names[::-1])
    for parts in ((support, turned, support), (support, support, turned)):
        with pytest.raises(handful.DataError, match="in its order"):
            next(coop_probe_draws(*parts, shots=[1], runs=[1]))
    with pytest.raises(handful.DataError, match="shots"):
        next(coop_probe_draws(support, support, support, shots=[]))


def test_other_names_for_zero_shot_forget_whose_images_they_were(
    mini: handful.Backbone, support: handful.ImageSet, tmp_path: Path
):
    clf = handful.ZeroShot(mini).fit(support).with_classes(["cat", "dog"])
    clf.add_class("owl").save(tmp_path / "clf")
    assert handful.load(tmp_path / "clf").classes_.tolist() == ["cat", "dog", "owl"]

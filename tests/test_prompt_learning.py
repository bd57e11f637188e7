"""CoOp, CoCoOp and text tuning: definitions, learning, other class names, nearest words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from backbone_configs import RESNET, SIGLIP
from conftest import TINY, write_model
from prompting import FORMS, NAMES, learner, task
from safetensors.torch import load_file
from torch import nn

import handful
from handful.analysis.words import explain_context, nearest_words
from handful.methods.text.cocoop import ConditionalPromptLearner, MetaNet
from handful.prompts import read_words, with_context
from handful.schedule import Schedule, epochs_by_shots
from handful.towers import text_pass
from handful.train import shuffled

# -- what the papers' definitions force (methods.md §14) ------------------------------------------


@pytest.mark.parametrize(
    ("position", "sentence"),
    [("end", "a photo of a {}."), ("middle", "a photo {} of a."), ("front", "{} a photo of a.")],
)
@pytest.mark.parametrize("class_specific", [False, True])
def test_words_equal_their_sentence(
    mini: handful.Backbone, position: str, sentence: str, class_specific: bool
):
    clf = handful.CoOp(mini, init="a photo of a", position=position, class_specific=class_specific)
    given = task(mini)
    ours = clf.learner(given, clf.start(given, torch.Generator())).class_weights()
    expected = F.normalize(mini.encode_text(mini.tokenize([sentence.format(n) for n in NAMES])), dim=-1)
    torch.testing.assert_close(ours.detach(), expected, atol=1e-5, rtol=1e-5)


def test_a_zeroed_meta_net_is_coop(mini: handful.Backbone):
    given, net = task(mini), MetaNet(mini.joint_width, mini.text.width)
    nn.init.zeros_(net.linear2.weight), nn.init.zeros_(net.linear2.bias)
    context = read_words(mini, "a photo of a")
    conditional = ConditionalPromptLearner(mini, NAMES, context, net)
    plain = handful.CoOp(mini).learner(given, context)
    x = given.inputs.sample(torch.arange(7), torch.Generator())
    torch.testing.assert_close(conditional(x), plain(x), atol=1e-4, rtol=1e-5)


def test_a_batch_of_images_is_each_image_alone(mini: handful.Backbone):
    torch.manual_seed(0)
    net = MetaNet(mini.joint_width, mini.text.width)
    learner = ConditionalPromptLearner(mini, NAMES, read_words(mini, "a photo of a"), net)
    x = torch.randn(5, mini.joint_width)
    together, alone = learner(x), torch.cat([learner(row[None]) for row in x])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-5)
    by_hand = []
    for row in F.normalize(x, dim=-1):
        shifted = learner.context + net(row[None])
        weights = F.normalize(text_pass(mini, *with_context(mini, NAMES, 4))(shifted), dim=-1)
        by_hand.append(mini.scale * weights @ row)
    torch.testing.assert_close(together, torch.stack(by_hand), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("length", "count"), [(16, 8_192), (4, 2_048)])
def test_parameter_count_of_coop(tmp_path: Path, length: int, count: int):
    text = TINY["text_cfg"] | {"width": 512, "layers": 1}
    backbone = handful.load_backbone(*write_model(tmp_path, TINY | {"text_cfg": text}), device="cpu")
    clf, given = handful.CoOp(backbone, length=length), task(backbone)
    model = clf.learner(given, clf.start(given, torch.Generator()))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count
    specific = handful.CoOp(backbone, length=length, class_specific=True)
    assert specific.start(given, torch.Generator()).shape == (3, length, 512)


@pytest.mark.parametrize(("joint", "count"), [(512, 35_360), (1024, 100_928)])
def test_parameter_count_of_cocoop(joint: int, count: int):
    net = MetaNet(joint, 512)
    assert sum(p.numel() for p in net.parameters()) + 4 * 512 == count


def test_the_published_schedule():
    rates = [Schedule(epochs=50).learning_rate(e) for e in (0, 1, 2, 3, 49)]
    np.testing.assert_allclose(rates, [1e-5, 2e-3, 1.998027e-3, 1.992115e-3, 7.8853e-6], rtol=1e-4)
    mma = Schedule(epochs=5, lr=1.5e-3, warmup_lr=None)
    expected = [1.5e-3, 1.3568e-3, 9.818e-4, 5.182e-4, 1.432e-4]
    np.testing.assert_allclose([mma.learning_rate(e) for e in range(5)], expected, atol=5e-8)


def test_epochs_by_shots():
    assert [epochs_by_shots(torch.arange(10).repeat(k)) for k in (1, 2, 4, 8, 16)] == [50, 100, 100, 200, 200]


@pytest.mark.parametrize(("images", "sizes"), [(75, [32, 32]), (20, [20]), (64, [32, 32])])
def test_a_last_smaller_batch_is_dropped_only_if_others_came(images: int, sizes: list[int]):
    source, labels = handful.Features.from_array(torch.arange(images * 2.0).view(-1, 2)), torch.arange(images)
    batches = list(shuffled(source, labels, 32, torch.Generator().manual_seed(0)))
    assert [len(y) for _, y, _ in batches] == sizes
    for x, y, rows in batches:
        assert torch.equal(x[:, 0], 2.0 * y) and torch.equal(y, rows)
    assert len(torch.cat([y for _, y, _ in batches]).unique()) == sum(sizes)


# -- learning -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", sorted(FORMS))
def test_it_learns_and_the_same_seed_learns_the_same(
    form: str, mini: handful.Backbone, support: handful.ImageSet
):
    clf = learner(form, mini).fit(support)
    assert np.mean(clf.losses_[-3:]) < np.mean(clf.losses_[:3])
    again = learner(form, mini).fit(support)
    for name, value in clf.head_.tensors().items():
        assert torch.equal(value, again.head_.tensors()[name])
    other = learner(form, mini).set_params(seed=1).fit(support)
    assert clf.losses_ != other.losses_


def test_the_global_random_state_is_left_alone(mini: handful.Backbone, support: handful.ImageSet):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    learner("cocoop", mini).set_params(epochs=1).fit(support)
    learner("coop", mini).set_params(epochs=1).fit(support)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("method", [handful.CoOp, handful.CoCoOp, handful.TextTuning])
def test_fresh_crops_online(method: type, tiny: handful.Backbone, two_classes: Path):
    images = handful.ImageSet.from_folder(two_classes)
    clf = method(tiny, views="online", epochs=2).fit(images)
    assert clf.predict(images).shape == (6,)
    assert method(tiny, views="online", epochs=2).fit(images).losses_ == clf.losses_
    assert method(tiny, views=0, epochs=2).fit(images).losses_ != clf.losses_


def test_online_is_for_methods_that_train(tiny: handful.Backbone, two_classes: Path):
    with pytest.raises(handful.ParameterError, match="views='online'"):
        handful.TipAdapter(tiny, views="online").fit(handful.ImageSet.from_folder(two_classes))


def test_online_names_all_bad_images_before_it_trains(tiny: handful.Backbone, two_classes: Path):
    images = handful.ImageSet.from_folder(two_classes)
    for path in images.items[:2]:
        Path(path).write_bytes(b"no")
    with pytest.raises(handful.DataError, match="2 of 6 images"):
        handful.CoOp(tiny, views="online").fit(images)


@pytest.mark.parametrize("config", [SIGLIP, RESNET], ids=["siglip", "resnet"])
@pytest.mark.parametrize("method", [handful.CoOp, handful.CoCoOp, handful.TextTuning])
def test_other_kinds_of_tower(config: dict, method: type, tmp_path: Path, two_classes: Path):
    backbone = handful.load_backbone(*write_model(tmp_path / "model", config), device="cpu")
    images = handful.ImageSet.from_folder(two_classes)
    length = {} if method is handful.TextTuning else {"length": 4}
    clf = method(backbone, epochs=3, views=0, **length).fit(images)
    clf.save(tmp_path / "saved")
    again = handful.load(tmp_path / "saved", backbone)
    np.testing.assert_array_equal(again.predict_proba(images), clf.predict_proba(images))
    if method is handful.CoOp:  # words are words there too
        given = task(backbone)
        words = handful.CoOp(backbone, init="a photo of a", position="middle")
        ours = words.learner(given, words.start(given, torch.Generator())).class_weights().detach()
        text = backbone.encode_text(backbone.tokenize([f"a photo {name} of a." for name in NAMES]))
        torch.testing.assert_close(ours, F.normalize(text, dim=-1), atol=1e-5, rtol=1e-5)


# -- other class names ----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["coop", "cocoop", "text-tuning", "text-tuning-bias"])
def test_what_was_learned_serves_other_names(
    form: str, mini: handful.Backbone, support: handful.ImageSet, tmp_path: Path
):
    clf = learner(form, mini).fit(support)
    turned = tuple(reversed(support.class_names))
    logits = clf.decision_function(support)
    there = clf.with_classes(turned)
    np.testing.assert_allclose(there.decision_function(support), logits, atol=1e-3)  # classes are sorted
    clf.save(tmp_path / "folder")
    clf.save_learned(tmp_path / "learned.safetensors")
    for place in ("folder", "learned.safetensors"):
        loaded = handful.load(tmp_path / place, mini, class_names=turned)
        np.testing.assert_array_equal(loaded.decision_function(support), there.decision_function(support))
        assert loaded.class_names_ == support.class_names
        assert loaded.with_classes(["x", "y"]).learned_on_ == support.class_names
        assert loaded.shots_ == clf.shots_
    assert not any(name == "class_weights" for name in load_file(tmp_path / "learned.safetensors"))


def test_zero_shot_takes_other_names_and_a_cache_does_not(mini: handful.Backbone, support: handful.ImageSet):
    there = handful.ZeroShot(mini).fit(class_names=["a", "b"]).with_classes(["lamp", "cat"])
    expected = handful.ZeroShot(mini).fit(class_names=["lamp", "cat"])
    np.testing.assert_array_equal(there.decision_function(support), expected.decision_function(support))
    for method in (handful.TipAdapter, handful.LogisticProbe):
        with pytest.raises(handful.ParameterError, match="knows its classes from their images"):
            method(mini).fit(support).with_classes(["lamp", "cat"])


def test_a_context_of_each_class_stays_with_its_classes(mini: handful.Backbone, support: handful.ImageSet):
    clf = learner("coop-csc-middle", mini).fit(support)
    with pytest.raises(handful.ParameterError, match="class_specific"):
        clf.with_classes(support.class_names)
    biased = learner("text-tuning-class-bias", mini).fit(support)
    with pytest.raises(handful.ParameterError, match="form='class-bias'"):
        biased.with_classes(support.class_names)


def test_a_file_of_learned_things_that_is_not_one(
    mini: handful.Backbone, tiny: handful.Backbone, support: handful.ImageSet, tmp_path: Path
):
    path = learner("coop", mini).fit(support).save_learned(tmp_path / "c.safetensors")
    with pytest.raises(handful.ParameterError, match="class_names=None"):
        handful.load(path)
    with pytest.raises(handful.FingerprintError, match="fitted on 'mini'"):
        handful.load(path, tiny, class_names=["a"])
    with pytest.raises(handful.CheckpointError, match="no file"):
        handful.load(tmp_path / "d.safetensors", class_names=["a"])
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(handful.CheckpointError, match="is not what clf"):
        handful.load(path, class_names=["a"])
    with pytest.raises(handful.ParameterError, match="knows its classes from their images"):
        handful.TipAdapter(mini).fit(support).save_learned(path)


# -- nearest words --------------------------------------------------------------------------------


def test_the_nearest_word_of_a_word_is_itself(tiny: handful.Backbone):
    context = read_words(tiny, "fluffy red lamp")
    found = nearest_words(tiny, context, top=2)
    assert [near[0].word for near in found] == ["fluffy", "red", "lamp"]
    table = tiny.text.embedding.weight
    for vector, near in zip(context, found, strict=True):
        assert near[0].distance == pytest.approx(0, abs=1e-3)
        second = (table - vector).norm(dim=1).sort().values[1]
        assert near[1].distance == pytest.approx(float(second), rel=1e-3)


def test_tokens_that_training_never_told_apart_are_counted(mini: handful.Backbone):
    table = mini.text.embedding.weight.detach()
    rows, counts = table.unique(dim=0, return_counts=True)
    (near,) = nearest_words(mini, rows[counts.argmax()][None], top=1)
    assert near[0].sharing == int(counts.max())
    assert "others alike" in str(near[0])


def test_explain_from_the_command_line(
    call, mini: handful.Backbone, support: handful.ImageSet, tmp_path: Path
):
    learner("coop", mini).fit(support).save(tmp_path / "one")
    code, text, _ = call("explain", tmp_path / "one", "--top", 2)
    assert code == 0
    assert len(text.splitlines()) == 1 + 5  # "a photo of the number"
    clf = learner("coop-csc-middle", mini).fit(support)
    clf.save(tmp_path / "each")
    code, text, _ = call("explain", tmp_path / "each", "--json")
    found = json.loads(text)["contexts"]
    assert list(found) == list(support.class_names)
    assert [len(own) for own in found.values()] == [4] * 10
    assert found["one"][0][0]["word"] == explain_context(clf)["one"][0][0].word
    handful.TipAdapter(mini).fit(support).save(tmp_path / "tip")
    code, _, err = call("explain", tmp_path / "tip")
    assert code == 1
    assert "learned no words" in err

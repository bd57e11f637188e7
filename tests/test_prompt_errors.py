"""What goes wrong in prompt learning is said."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, write_model
from prompting import NAMES, fit, learner, task
from safetensors.torch import load_file, save_file
from torch import nn

import handful
from handful import checkpoint
from handful.analysis.words import explain_context
from handful.prompts import with_context
from handful.schedule import Schedule
from handful.train import train

# -- what goes wrong is said ----------------------------------------------------------------------

LONG = "very " * 60 + "long name"


@pytest.mark.parametrize(
    ("parameters", "names", "error", "message"),
    [
        ({}, [LONG, "b"], handful.ParameterError, r"class_names='very .*at most 58 tokens.*has 62.*Shorten"),
        ({}, [], handful.DataError, "no class names"),
        ({}, ["lamp", "Lamp"], handful.DataError, "duplicate class names"),
        ({"length": 75}, ["a", "b"], handful.ParameterError, r"length=75, expected at most 73 .*reads 77"),
        ({"length": 0}, ["a", "b"], handful.ParameterError, "length=0, expected an integer >= 1"),
        ({"length": 3, "init": "a photo of a"}, ["a", "b"], handful.ParameterError, "None or 4"),
        ({"init": ""}, ["a", "b"], handful.ParameterError, "init=''"),
        ({"position": "left"}, ["a", "b"], handful.ParameterError, "position='left'"),
        ({"epochs": 0}, ["a", "b"], handful.ParameterError, "epochs=0"),
        ({"lr": -1}, ["a", "b"], handful.ParameterError, "lr=-1"),
        ({"lr": 1e45}, ["a", "b"], handful.ParameterError, r"lr=1e\+45"),
        ({"batch_size": 0}, ["a", "b"], handful.ParameterError, "batch_size=0"),
        ({"seed": "x"}, ["a", "b"], handful.ParameterError, "seed='x'"),
    ],
)
def test_bad_parameters(
    tiny: handful.Backbone, parameters: dict, names: list[str], error: type, message: str
):
    with pytest.raises(error, match=message):
        handful.CoOp(tiny, **parameters).fit(np.eye(2, 16, dtype=np.float32), [0, 1], class_names=names)


def test_a_loss_that_is_no_number(tiny: handful.Backbone):
    given = task(tiny)
    with pytest.raises(handful.TrainingError, match=r"loss became (nan|inf).*lr=1e\+30.*lower it") as caught:
        fit(handful.CoOp(tiny, lr=1e30, views=0), given)
    assert isinstance(caught.value, FloatingPointError)


def test_a_failed_fit_keeps_the_last_one(tiny: handful.Backbone):
    clf = fit(handful.CoOp(tiny, epochs=1), task(tiny))
    before = clf.head_
    with pytest.raises(handful.TrainingError):
        fit(clf.set_params(lr=1e30, epochs=50), task(tiny))
    assert clf.head_ is before


def test_what_a_text_tower_method_needs(tiny: handful.Backbone):
    features, labels = np.eye(2, 16, dtype=np.float32), [0, 1]
    with pytest.raises(handful.ParameterError, match="leave class_weights out"):
        handful.CoOp(tiny).fit(features, labels, class_names=["a", "b"], class_weights=features)
    with pytest.raises(handful.ParameterError, match=r"CoOp needs a backbone: pass .* or its name\.$"):
        handful.CoOp().fit(features, labels, class_names=["a", "b"])
    with pytest.raises(handful.DataError, match="learns from images"):
        handful.CoOp(tiny).fit(class_names=["a", "b"])
    with pytest.raises(handful.ParameterError, match="form='matrix'"):
        handful.TextTuning(tiny, form="matrix").fit(features, labels, class_names=["a", "b"])


def test_a_context_of_another_width_is_refused(
    mini: handful.Backbone, support: handful.ImageSet, tmp_path: Path
):
    for form, name in (("coop", "context"), ("cocoop", "meta_net.linear1.weight")):
        path = learner(form, mini).fit(support).save_learned(tmp_path / f"{form}.safetensors")
        raw = path.read_bytes()
        metadata = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]
        tensors = load_file(path)
        tensors[name] = tensors[name][:, :-1].contiguous()
        save_file(tensors, path, metadata)
        with pytest.raises(handful.CheckpointError):
            handful.load(path, mini, class_names=["a", "b"])


def test_training_takes_only_what_requires_gradients(tiny: handful.Backbone):
    before = {key: value.clone() for key, value in tiny.model.state_dict().items()}
    fit(handful.CoOp(tiny, epochs=2), task(tiny))
    fit(handful.CoCoOp(tiny, epochs=1), task(tiny))
    assert all(torch.equal(value, before[key]) for key, value in tiny.model.state_dict().items())


def test_train_gives_the_loss_of_every_step():
    model = nn.Linear(3, 2)
    batch = (torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))
    assert len(train(model, lambda: [batch, batch], Schedule(epochs=3), show=True).losses) == 6


@pytest.mark.parametrize("form", ["coop", "cocoop"])
def test_a_pickled_classifier_predicts_the_same(form: str, mini: handful.Backbone, support: handful.ImageSet):
    clf = learner(form, mini).fit(support)
    again = pickle.loads(pickle.dumps(clf))
    np.testing.assert_array_equal(again.decision_function(support), clf.decision_function(support))
    assert clf.decision_function(np.zeros((0, 256), np.float32)).shape == (0, 10)


# -- what a hostile reader found ------------------------------------------------------------------


def test_another_backbone_since_the_fit_is_refused(
    mini: handful.Backbone, support: handful.ImageSet, tmp_path: Path
):
    config = TINY | {"embed_dim": 256}
    other = handful.load_backbone(*write_model(tmp_path, config), device="cpu")
    clf = learner("coop", mini).fit(support)
    clf.set_params(backbone=other)
    for use in (clf.predict, lambda _: explain_context(clf), lambda _: clf.with_classes(["a"])):
        with pytest.raises(handful.FingerprintError):
            use(support)
    assert clf.info()["backbone"]["name"] == "mini"
    assert clf.fit(support).predict(support).shape == (len(support),)


@pytest.mark.parametrize("method", [handful.CoOp, handful.CoCoOp])
def test_a_last_step_that_leaves_the_numbers_is_no_fit(method: type, tiny: handful.Backbone):
    features = np.eye(2, 16, dtype=np.float32)
    clf = method(tiny, epochs=2, lr=1e38, batch_size=2, views=0)  # the first epoch is at 1e-5
    with pytest.raises(handful.TrainingError, match="lower it"):
        clf.fit(features, [0, 1], class_names=["a", "b"])


@pytest.mark.parametrize("method", [handful.CoOp, handful.CoCoOp, handful.TextTuning])
def test_features_of_another_width(method: type, tiny: handful.Backbone):
    with pytest.raises(handful.DataError, match="features 7 wide"):
        method(tiny).fit(np.eye(2, 7, dtype=np.float32), [0, 1], class_names=["a", "b"])


def test_numbers_of_numpy_are_numbers(tiny: handful.Backbone, tmp_path: Path):
    clf = handful.CoOp(tiny, epochs=np.int64(2), batch_size=np.int64(4), seed=np.int32(3), views=0)
    fit(clf, task(tiny)).save(tmp_path / "saved")
    assert handful.load(tmp_path / "saved", tiny).selected_ == {"epochs": 2}
    with pytest.raises(handful.ParameterError, match="seed="):
        fit(handful.CoOp(tiny, seed=2**70), task(tiny))


SPOILT = {
    "missing": lambda tensors, facts: tensors.clear(),
    "extra": lambda tensors, facts: tensors.update(more=torch.zeros(2)),
    "integer": lambda tensors, facts: tensors.update({k: v.long() for k, v in tensors.items()}),
    "nan": lambda tensors, facts: next(iter(tensors.values())).fill_(torch.nan),
    "one dimension": lambda tensors, facts: tensors.update({k: v.flatten() for k, v in tensors.items()}),
    "width": lambda tensors, facts: tensors.update({k: v[..., :-1] for k, v in tensors.items()}),
    "names": lambda tensors, facts: facts.update(class_names=[1, 2]),
    "no backbone": lambda tensors, facts: facts.update(backbone={}),
    "form": lambda tensors, facts: facts["parameters"].update(form=["transform"]),
    "specific": lambda tensors, facts: facts["parameters"].update(class_specific=True),
    "notes": lambda tensors, facts: facts.update(learned_on="x"),
}


@pytest.mark.parametrize("form", ["coop", "cocoop", "text-tuning"])
@pytest.mark.parametrize("spoil", sorted(SPOILT))
def test_spoilt_learned_files(form: str, spoil: str, tiny: handful.Backbone, tmp_path: Path):
    clf = fit(learner(form, tiny).set_params(epochs=1), task(tiny))
    tensors, facts = clf.learned(), clf.info()
    SPOILT[spoil](tensors, facts)
    checkpoint.write_learned(tmp_path / "spoilt.safetensors", tensors, facts)
    with pytest.raises((handful.CheckpointError, handful.ParameterError)):
        handful.load(tmp_path / "spoilt.safetensors", tiny, class_names=["x", "y"])


@pytest.mark.parametrize("shape", [(9, 192), (2, 9, 192), (4, 7), (10, 3, 4, 192)])
def test_a_context_that_does_not_fit_its_classes(
    mini: handful.Backbone, support: handful.ImageSet, tmp_path: Path, shape: tuple[int, ...]
):
    clf = learner("coop-csc-middle", mini).fit(support)
    tensors = clf.head_.tensors() | {"context": torch.zeros(shape)}
    checkpoint.write(tmp_path / "model", tensors, clf.info())
    with pytest.raises(handful.CheckpointError, match="context"):
        handful.load(tmp_path / "model", mini)


def test_what_was_learned_is_not_shared(tiny: handful.Backbone):
    clf = fit(handful.CoOp(tiny, epochs=1), task(tiny))
    there = clf.with_classes(["x", "y"])
    clf.learned()["context"].zero_()
    assert clf.learned()["context"].any()
    assert there.learned()["context"].any()


def test_notes_tell_what_was_learned_where(tiny: handful.Backbone, tmp_path: Path):
    clf = fit(handful.CoOp(tiny, epochs=1), task(tiny))
    assert "views=8 was not used" in clf.notes_[0]
    assert clf.with_classes(NAMES).learned_on_ == ()
    there = clf.with_classes(["x", "y"]).with_classes(["up", "down"])
    assert there.learned_on_ == tuple(sorted(NAMES))
    there.save(tmp_path / "there")
    assert (
        "of other classes: 2012 Audi TTS Coupe, cat, red panda" in (tmp_path / "there/README.md").read_text()
    )
    zero = handful.ZeroShot(tiny).fit(class_names=["a"]).with_classes(["b"])
    assert (zero.learned_on_, zero.notes_) == ((), ())


def test_class_weights_that_were_given_are_remembered(tiny: handful.Backbone):
    given = task(tiny)
    clf = handful.TextTuning(tiny, epochs=1, views=0)
    clf.fit(given.features, given.labels.numpy(), class_names=NAMES, class_weights=np.eye(3, 16))
    assert clf.info()["templates"] == []
    with pytest.raises(handful.ParameterError, match="class weights that were given"):
        clf.with_classes(["x", "y"])


def test_any_file_name_will_do(tiny: handful.Backbone, tmp_path: Path):
    clf = fit(handful.CoOp(tiny, epochs=1), task(tiny))
    clf.save_learned(tmp_path / "ctx")
    assert handful.load(tmp_path / "ctx", tiny, class_names=["x"]).class_names_ == ("x",)
    clf.save(tmp_path / "birds.safetensors")
    assert handful.load(tmp_path / "birds.safetensors", tiny).class_names_ == tuple(sorted(NAMES))
    specific = fit(handful.CoOp(tiny, epochs=1, class_specific=True), task(tiny))
    with pytest.raises(handful.ParameterError, match="class_specific"):
        specific.save_learned(tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["Yahoo!", "foo'..", "U.S.A.", "what?"])
@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_punctuation_does_not_swallow_the_period(mini: handful.Backbone, name: str, position: str):
    tokens, slots = with_context(mini, [name, "cat"], 4, position)
    end = int(tokens[0].argmax())
    assert (slots[0] >= 0).nonzero().max() < end
    assert sorted(slots[0][slots[0] >= 0].tolist()) == [0, 1, 2, 3]

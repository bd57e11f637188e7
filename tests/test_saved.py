"""Classifiers that version 0.1.0 saved load, and answer as they did."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import handful

SAVED = Path(__file__).parent / "saved"
sys.path.insert(0, str(SAVED))
from make import frozen_backbone, pictures  # noqa: E402

NEAR = 2e-5
"""Processors add in other orders: on the machine that saved them the answers were equal to the last bit."""
CLASSIFIERS = sorted(path.parent.name for path in SAVED.glob("*/head.json"))


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> handful.Backbone:
    return frozen_backbone(tmp_path_factory.mktemp("frozen"))


def load(name: str, frozen: handful.Backbone, mini: handful.Backbone) -> handful.FewShotClassifier:
    return handful.load(SAVED / name, mini if name.startswith("mini") else frozen)


def differs(clf: handful.FewShotClassifier, answers: Path) -> dict[str, float]:
    expected, queries = load_file(answers), pictures(7, 4)
    found = {"logits": clf.logits(queries), "probabilities": clf.predict_proba(queries)}
    return {name: float(np.abs(found[name] - value.numpy()).max()) for name, value in expected.items()}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_it_answers_as_it_did(name: str, frozen: handful.Backbone, mini: handful.Backbone):
    clf = load(name, frozen, mini)
    assert max(differs(clf, SAVED / name / "answers.safetensors").values()) <= NEAR


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_saved_again_it_is_the_same_file(
    name: str, frozen: handful.Backbone, mini: handful.Backbone, tmp_path: Path
):
    load(name, frozen, mini).save(tmp_path)
    before, after = (json.loads((folder / "head.json").read_text()) for folder in (SAVED / name, tmp_path))
    assert after["tensors"] == before["tensors"]
    changing = ("saved", "versions", "backbone")
    kept = {key: value for key, value in before.items() if key not in changing}
    if "balance" in after["parameters"]:  # there was none: images counted alike, and do so still
        kept["parameters"].setdefault("balance", False)
    assert {key: after[key] for key in kept} == kept
    assert after["backbone"]["fingerprint"] == before["backbone"]["fingerprint"]


@pytest.mark.parametrize("name", ["coop", "mma"])
def test_what_was_learned_alone_serves_other_names(name: str, frozen: handful.Backbone):
    clf = handful.load(SAVED / name / "learned.safetensors", frozen, class_names=["kiwi", "lime"])
    assert max(differs(clf, SAVED / name / "answers-others.safetensors").values()) <= NEAR


def test_there_is_one_of_every_method():
    assert set(handful.METHODS) <= set(CLASSIFIERS)


def test_integers_stay_integers(frozen: handful.Backbone):
    clf = handful.load(SAVED / "integers", frozen)
    assert clf.predict(pictures(7, 4)).dtype.kind == "i" and clf.classes_.tolist() == [5, 6, 7]


def test_calibration_and_draw_come_back(frozen: handful.Backbone, mini: handful.Backbone):
    clf = handful.load(SAVED / "tip-adapter", frozen)
    assert clf.calibration_ is not None and clf.calibration_.images == 9
    assert clf.predict(pictures(8, 3), unknown="auto").shape == (3,)
    assert handful.load(SAVED / "mini-coop", mini).draw_ == {"data": "noise", "shots": 3, "seed": 1}


def test_nothing_of_it_needs_a_gradient(frozen: handful.Backbone):
    clf = handful.load(SAVED / "mma", frozen)
    assert not any(value.requires_grad for value in clf.head_.tensors().values()) and torch.is_grad_enabled()

"""A saved classifier comes back to the bit, or not at all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, dies_at, write_model
from safetensors.torch import load_file, save_file

import handful
from handful import checkpoint

FORMS = {
    "auto": {"templates": ["a {}.", "the {}."]},
    "zero-shot": {},
    "linear-probe": {"strength": 2.0},
    "logistic-probe": {"selection": "fixed"},
    "gda": {"views": 2},
    "kernel-ridge": {"kernel": "linear", "views": 2},
    "ss-text": {"templates": ["a {}.", "the {}."]},
    "tip-adapter": {"alpha": 2.5, "templates": ["a {}.", "the {}."]},
    "tip-adapter-f": {"alpha": 2.5, "epochs": 2, "views": 2},
    "ape": {"alpha": 2.5, "channels": 100},
    "ape-t": {"alpha": 2.5, "epochs": 2, "views": 2},
    "tda": {"capacity": 2, "views": 2},
    "meta-adapter": {"views": 2},
    "clip-adapter": {"side": "both", "epochs": 2, "views": 2, "selection": "fixed"},
    "fine-tuning": {"epochs": 1, "views": 1, "lr": 1e-6},
    "mma": {"first_block": 4, "width": 4, "epochs": 1, "views": 1},
    "text-tuning": {"form": "bias", "epochs": 2, "views": 0},
    "linear-adapter": {"strength": 0.1},
    "taskres": {"epochs": 2, "views": 2, "alpha": 1.0},
    "lp-plus-plus": {"epochs": 12},
    "cross-modal-probe": {"iterations": 5, "wise_ft": 0.5},
    "prolip": {"epochs": 5, "views": 2},
    "coop": {"length": 4, "class_specific": True, "epochs": 2, "views": 2},
    "cocoop": {"epochs": 1, "batch_size": 8, "views": 0},
}


@pytest.fixture(params=sorted(handful.METHODS))
def fitted(request: pytest.FixtureRequest, mini: handful.Backbone, support: handful.ImageSet):
    return handful.METHODS[request.param](mini, **FORMS[request.param]).fit(support)


@pytest.fixture
def saved(mini: handful.Backbone, support: handful.ImageSet, tmp_path: Path) -> Path:
    return handful.TipAdapter(mini).fit(support).save(tmp_path / "model")


def test_round_trip_is_bit_equal(fitted, mini: handful.Backbone, held_out: handful.ImageSet, tmp_path: Path):
    fitted.save(tmp_path / "model")
    some = held_out[::4]
    expected, names = fitted.predict_proba(some), fitted.predict(some).tolist()
    for again in (handful.load(tmp_path / "model"), handful.load(tmp_path / "model", mini)):
        np.testing.assert_array_equal(again.predict_proba(some), expected)
        assert again.predict(some).tolist() == names
        left, right = again.info(), fitted.info()
        left.pop("saved"), right.pop("saved")
        assert left == right
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "README.md", "head.json", "head.safetensors",
    ]  # fmt: skip


def test_saving_over_the_folder_that_was_loaded(saved: Path, held_out: handful.ImageSet):
    clf = handful.load(saved)
    before = clf.predict_proba(held_out)
    clf.save(saved)
    np.testing.assert_array_equal(handful.load(saved).predict_proba(held_out), before)


def test_a_checkpoint_holds_no_backbone_and_writes_its_selection(saved: Path):
    tensors = load_file(saved / "head.safetensors")
    assert sum(t.numel() for t in tensors.values()) < 20_000
    facts = json.loads((saved / "head.json").read_text())
    assert facts["selection"] == "fixed"
    assert facts["selected"] == {"alpha": 1.17, "beta": 5.5}
    assert "selection `fixed`" in (saved / "README.md").read_text()


def test_a_wrong_backbone_is_refused(saved: Path, tmp_path: Path, tiny: handful.Backbone):
    with pytest.raises(handful.FingerprintError, match="fitted on 'mini'"):
        handful.load(saved, tiny)


def test_a_backbone_from_files_is_found_again_or_asked_for(tmp_path: Path, support: handful.ImageSet):
    config, weights = write_model(tmp_path / "model", TINY)
    clf = handful.TipAdapter(handful.load_backbone(config, weights=weights)).fit(support)
    clf.save(tmp_path / "saved")
    np.testing.assert_array_equal(
        handful.load(tmp_path / "saved").decision_function(support), clf.decision_function(support)
    )
    weights.unlink()
    with pytest.raises(handful.CheckpointError, match=r"model.safetensors is no longer there.*handful\.load"):
        handful.load(tmp_path / "saved")


def spoiled(folder: Path) -> list[str]:
    """Ways to spoil a checkpoint."""
    return [
        "no json", "no tensors", "cut json", "cut tensors", "flipped bit", "json list", "other format",
        "nan", "shape", "dtype", "labels", "names", "extra tensor", "method", "kind", "parameters",
        "alpha", "deep json", "class count",
    ]  # fmt: skip


@pytest.mark.parametrize("how", spoiled(Path()))
def test_a_spoiled_checkpoint_is_a_clear_error(saved: Path, mini: handful.Backbone, how: str):
    head, facts_file = saved / "head.safetensors", saved / "head.json"
    tensors, facts = checkpoint.read(saved)
    data = head.read_bytes()
    if how == "no json":
        facts_file.unlink()
    elif how == "no tensors":
        head.unlink()
    elif how == "cut json":
        facts_file.write_bytes(facts_file.read_bytes()[:-40])
    elif how == "cut tensors":
        head.write_bytes(data[:-40])
    elif how == "flipped bit":
        head.write_bytes(data[:-9] + bytes([data[-9] ^ 4]) + data[-8:])
    elif how == "json list":
        facts_file.write_text("[1, 2]")
    elif how == "deep json":
        facts_file.write_text("[" * 200_000)
    else:
        if how == "nan":
            tensors["keys"][0, 0] = float("nan")
        elif how == "shape":
            tensors["keys"] = tensors["keys"][:, :-1].contiguous()
        elif how == "dtype":
            tensors["keys"] = tensors["keys"].double()
        elif how == "labels":
            tensors["labels"][0] = 99
        elif how == "names":
            tensors["nonsense"] = tensors.pop("keys")
        elif how == "extra tensor":
            tensors["extra"] = tensors["keys"].clone()
        elif how == "other format":
            facts["format"] = 99
        elif how == "method":
            facts["method"] = "os:system"
        elif how == "kind":
            facts["head"]["kind"] = "pickle"
        elif how == "parameters":
            facts["parameters"]["__class__"] = "x"
        elif how == "alpha":
            facts["head"]["alpha"] = "1; drop"
        elif how == "class count":
            facts["class_names"] = facts["class_names"][:-1]
        save_file(tensors, head)
        import hashlib

        facts["tensors"] = hashlib.sha256(head.read_bytes()).hexdigest()
        facts_file.write_text(json.dumps(facts))
    with pytest.raises(handful.CheckpointError):
        handful.load(saved, mini)


def test_nothing_there(tmp_path: Path):
    with pytest.raises(handful.CheckpointError, match="no saved classifier"):
        handful.load(tmp_path / "nothing")


def test_tensors_of_another_classifier_are_noticed(
    saved: Path, mini: handful.Backbone, support, tmp_path: Path
):
    other = handful.TipAdapter(mini).fit(support[np.arange(0, len(support), 2)]).save(tmp_path / "other")
    shutil.copy(other / "head.safetensors", saved / "head.safetensors")
    with pytest.raises(handful.CheckpointError, match="not the one"):
        handful.load(saved, mini)


def test_whatever_moment_a_writer_dies_at_a_reader_finds_a_pair(
    saved: Path, mini: handful.Backbone, support: handful.ImageSet
):
    """Die at the n-th file operation, for every n until one save goes through."""
    new = handful.TipAdapter(mini, alpha=9.0).fit(support[np.arange(0, len(support), 2)])
    handful.load(saved, mini).save(saved.parent / "old")
    seen = set()
    for last in range(1, 60):
        shutil.rmtree(saved)
        shutil.copytree(saved.parent / "old", saved)
        done = not dies_at(last, Killed(), lambda: new.save(saved))
        seen.add(handful.load(saved, mini).alpha)
        if done:
            break
    assert done
    assert last > 5
    assert seen == {1.17, 9.0}
    assert handful.load(saved, mini).alpha == 9.0


class Killed(BaseException):
    """The process is gone: nothing that runs afterwards may repair anything."""


def test_a_folder_that_cannot_be_written_keeps_what_it_held(
    saved: Path, mini: handful.Backbone, support: handful.ImageSet, monkeypatch: pytest.MonkeyPatch
):
    clf = handful.TipAdapter(mini, alpha=9.0).fit(support)
    monkeypatch.setattr(os, "fsync", _disk_full)
    with pytest.raises(handful.CheckpointError, match="No space left"):
        clf.save(saved)
    assert handful.load(saved, mini).alpha == 1.17
    assert not list(saved.glob(".*"))
    with pytest.raises(handful.CheckpointError, match="Can't save"):
        clf.save(saved / "head.json")


def _disk_full(handle: int) -> None:
    raise OSError(28, "No space left on device")

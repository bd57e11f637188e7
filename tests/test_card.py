"""The model card, and recorded scores."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from conftest import TINY, write_model
from hubs import PARTS, Hub, contents, facts_of, front

import handful
from handful import checkpoint
from handful.hub import pull, push
from handful.model_card import find_licence, is_own, model_card

# -- the card -------------------------------------------------------------------------------------


def test_the_card_says_what_is_known(saved: Path):
    card = (saved / "README.md").read_text()
    assert front(card) == {
        "library_name": "handful",
        "pipeline_tag": "image-classification",
        "tags": ["clip", "few-shot", "open_clip", "tip-adapter"],
        "license": "other",
    }
    assert [line[3:] for line in card.splitlines() if line.startswith("## ")] == PARTS
    for words in (
        "40 images, 4 for each class", "selection `fixed`", '{"alpha": 1.17, "beta": 5.5}', " and 36 more",
        "eight/", "None is recorded", 'handful.load("FOLDER")', "research and demonstration",
    ):  # fmt: skip
        assert words in card, words
    assert str(saved.parent) not in card
    assert is_own(card.encode())
    assert is_own(card.replace("\n", "\r\n").encode())  # git on Windows
    assert not is_own(card.replace("Limits", "Limitations").encode())
    assert not is_own(b"# My model\n")


def test_names_cannot_break_the_card(saved: Path):
    facts = facts_of(saved) | {"class_names": ["a\n---\nb", "<b>", "c | d", "e*"], "method": 'x:"y"'}
    card = model_card(facts)
    assert "a --- b, \\<b\\>, c \\| d, e\\*" in card
    assert front(card)["tags"] == ["clip", "few-shot", "open_clip"]
    assert "method=ITS_CLASS" in card
    assert "handful predict" not in card


def test_zero_shot_other_classes_oracle_and_calibration(saved: Path):
    facts = facts_of(saved)
    assert "no image (zero-shot)" in model_card(facts | {"shots": [], "support": []})
    card = model_card(facts | {"learned_on": ["cat", "red panda"], "shots": [1, 3], "selection": "oracle"})
    assert "of other classes: cat, red panda" in card
    assert "4 images, 1 to 3 for each class" in card
    assert card.count("too good") == 2
    found = {"temperature": 1.5, "threshold": 0.4, "false_alarm": 0.05, "images": 40, "folds": 4}
    card = model_card(facts | {"calibration": found})
    assert "on 40 held-out images: temperature 1.5." in card
    assert "whose cosine to the nearest class mean is below 0.4; stated rate of false alarms: 0.05" in card
    assert "handful predict --coverage" not in card
    card = model_card(facts | {"calibration": found | {"probability_weight": 0.25, "balance": True}})
    assert "nearest class mean, plus 0.25 times its largest probability, is below 0.4" in card
    assert "`handful predict --coverage 0.9`" in card


@pytest.mark.parametrize(
    ("backbone", "hub", "licence"),
    [
        ("mini", "", "other"),
        ("ViT-B-16/openai", "timm/vit_base_patch16_clip_224.openai", "mit"),
        ("RN50/openai", "timm/resnet50_clip.openai", "mit"),
        ("ViT-B-32/laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "mit"),
        ("ViT-L-14/datacomp_xl_s13b_b90k", "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K", "mit"),
        ("ViT-B-16-SigLIP/webli", "timm/ViT-B-16-SigLIP", "apache-2.0"),
        ("ViT-H-14-CLIPA-336/laion2b", "UCSC-VLAA/ViT-H-14-CLIPA-336-laion2B", ""),
        ("ViTamin-S/datacomp1b", "jienengchen/ViTamin-S", ""),
        ("hf-hub:laion/CLIP-ViT-B-16-laion2B-s34B-b88K", "laion/CLIP-ViT-B-16-laion2B-s34B-b88K", "mit"),
        ("hf-hub:org/name", "org/name", ""),
        ("nothing/known", "", ""),
        ('{"config": "/a/c.json", "weights": "/a/w.safetensors"}', "", ""),
    ],
)
def test_licences_of_backbones(saved: Path, backbone: str, hub: str, licence: str):
    assert find_licence(backbone)[:2] == (hub, licence)
    card = model_card(facts_of(saved) | {"backbone": {"name": backbone, "fingerprint": "0" * 64}})
    assert front(card).get("base_model", "") == hub
    assert front(card).get("license", "") == licence
    assert ("unknown: look at its own card" in card) == (not licence)
    assert "/a/" not in card


def test_a_backbone_from_files(two_classes: Path, tmp_path: Path):
    config, weights = write_model(tmp_path / "there", TINY)
    images = handful.ImageSet.from_folder(two_classes)
    clf = handful.TipAdapter(handful.load_backbone(config, weights=weights)).fit(images)
    push(clf.save(tmp_path / "saved"), tmp_path / "repo")
    card = (tmp_path / "repo/README.md").read_text()
    assert "load_backbone('config.json', weights='model.safetensors')" in card
    assert str(tmp_path) not in card


# -- scores ---------------------------------------------------------------------------------------


def test_evaluate_records_a_score(call, saved: Path, few_digits: Path, tmp_path: Path):
    before = facts_of(saved)
    code, text, err = call("evaluate", saved, few_digits / "test", "--record", "--json")
    assert code == 0
    found, facts = json.loads(text), facts_of(saved)
    (score,) = facts.pop("scores")
    assert facts == before
    assert {**score, "date": ""} == {
        "data": "few/test", "images": 60, "accuracy": found["accuracy"], "zero_shot": found["zero_shot"],
        "balanced_accuracy": found["balanced_accuracy"], "balanced_zero_shot": found["balanced_zero_shot"],
        "seen": 0, "date": "",
    }  # fmt: skip
    assert f"recorded in {saved}\n" in err
    row = f"| few/test | 60 | {100 * found['accuracy']:.2f} % | {100 * found['zero_shot']:.2f} % |"
    push(saved, tmp_path / "repo")
    assert row in (tmp_path / "repo/README.md").read_text()
    handful.load(saved)


def test_a_score_replaces_that_on_the_same_data(saved: Path):
    score = {"data": "a/b", "images": 5, "accuracy": 0.5, "zero_shot": 0.25, "date": "2026-01-01"}
    for other in ({}, {"data": "c/d"}, {"accuracy": 0.75}):
        assert checkpoint.record_score(saved, score | other)
    scores = facts_of(saved)["scores"]
    assert [(s["data"], s["accuracy"]) for s in scores] == [("c/d", 0.5), ("a/b", 0.75)]
    assert "| a/b | 5 | 75.00 % | 25.00 % | 2026-01-01 |" in (saved / "README.md").read_text()


def test_a_card_that_a_person_wrote_is_left_alone(saved: Path, hub: Hub, tmp_path: Path):
    (saved / "README.md").write_bytes(b"# Mine, \xe9\n")
    score = {"data": "a/b", "images": 5, "accuracy": 0.5, "zero_shot": 0.25, "date": "2026-01-01"}
    assert not checkpoint.record_score(saved, score)
    push(saved, "me/digits")
    pull("me/digits", tmp_path / "out")
    assert (tmp_path / "out/README.md").read_bytes() == b"# Mine, \xe9\n"
    (saved / "README.md").unlink()
    assert checkpoint.record_score(saved, score)
    assert is_own((saved / "README.md").read_bytes())


def test_a_score_that_cannot_be_written_loses_nothing(saved: Path, monkeypatch: pytest.MonkeyPatch):
    before = contents(saved)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(handful.CheckpointError, match="No space left"):
        checkpoint.record_score(saved, {"data": "a", "images": 1, "accuracy": 1.0, "zero_shot": 1.0})
    assert contents(saved) == before

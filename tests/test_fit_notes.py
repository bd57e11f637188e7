"""What `fit` says of a support set: few images, unequal classes, names that say nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from toys import NAMES, toy

import handful
from handful.cli.digits import NAMES as DIGITS
from handful.estimator.noting import check_names_say_something, look_like_codes

WNIDS = [f"n0{1440764 + 2799 * row}" for row in range(10)]
WORDS = ["wug", "blick", "dax", "zorb", "quim", "flep", "trop", "mub", "snid", "gorp"]


def notes_of(clf: handful.FewShotClassifier, counts: tuple[int, ...]) -> str:
    features, labels, text = toy(max(counts), noise=0.1)
    text = F.normalize(torch.stack([features[labels == row].mean(0) for row in range(3)]), dim=-1)
    kept = np.concatenate([np.flatnonzero(labels == row)[:count] for row, count in enumerate(counts)])
    weights = {"class_weights": text} if clf.uses_text else {}
    return " ".join(clf.fit(features[kept], labels[kept], class_names=NAMES, **weights).notes_)


# -- counts ---------------------------------------------------------------------------------------


def test_classes_of_few_images_are_named_with_their_numbers():
    said = notes_of(handful.LinearProbe(), (100, 3, 2))
    assert "Classes have 2 to 100 images, and count alike" in said
    assert "Few images of 'dog' (3), 'red panda' (2): with fewer than 4" in said
    assert "large classes count more" in notes_of(handful.LinearProbe(balance=False), (100, 3, 3))
    assert "of 'red panda' (0)" in notes_of(handful.TipAdapter(), (8, 8, 0))


@pytest.mark.parametrize("counts", [(4, 4, 4), (30, 31, 29), (16, 16, 12)])
def test_enough_images_of_nearly_equal_classes_need_no_note(counts: tuple[int, ...]):
    assert notes_of(handful.TipAdapter(), counts) == ""


def test_equal_shots_are_not_called_unequal():
    said = notes_of(handful.TipAdapter(), (1, 1, 1))
    assert "Few images (1 of every class)" in said and "Classes have" not in said


def test_many_classes_of_few_images_are_counted():
    features = torch.eye(9)
    names = [f"kind {letter}" for letter in "abcdefghi"]
    clf = handful.LogisticProbe().fit(features, names[:8] + names[:1])
    assert any("'kind e' (1) and 3 more classes" in note for note in clf.notes_)


def test_what_learns_nothing_from_images_or_is_given_none_has_no_note(mini: handful.Backbone):
    assert notes_of(handful.ZeroShot(), (100, 3, 3)) == ""
    assert handful.MetaAdapter(mini).fit(class_names=["cat", "dog"]).notes_ == ()


def test_the_command_prints_smallest_to_largest(digits: Path, tmp_path: Path, call):
    for name, count in (("three", 20), ("eight", 3), ("nine", 3)):
        for file in sorted((digits / "train" / name).iterdir())[:count]:
            place = tmp_path / "data" / name / file.name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(file)
    code, text, err = call("fit", tmp_path / "data", "--out", tmp_path / "model")
    assert code == 0 and "images_per_class: 3 to 20" in text
    assert "note: Classes have 3 to 20 images, and count alike" in err and "'eight' (3), 'nine' (3)" in err
    code, text, err = call("fit", tmp_path / "data", "--out", tmp_path / "model", "--shots", 2, "--json")
    assert json.loads(text)["images_per_class"] == [2, 2] and "Classes have" not in err
    code, _, err = call("fit", tmp_path / "data", "--out", tmp_path / "other", "-p", "balance=sometimes")
    assert code != 0 and "Got balance='sometimes', expected True" in err


# -- names ----------------------------------------------------------------------------------------


def named(
    mini: handful.Backbone, images: handful.ImageSet, names: list[str], method: str = "tip-adapter"
) -> str:
    """Fit digits under other names, and give the note of the names."""
    labels = [names[row] for row in images.labels]
    clf = handful.METHODS[method](mini, **({"views": 0, "epochs": 1} if method == "coop" else {}))
    notes = clf.fit(images.items, labels, class_names=names).notes_
    return " ".join(note for note in notes if "zero-shot by them" in note)


@pytest.mark.parametrize(
    "names",
    [
        WNIDS,
        WORDS,
        [f"{37 * row + 11:04d}" for row in range(10)],
        [f"class_{row}" for row in range(10)],
        [f"{2654435761 * (row + 3) % 2**32:08x}" for row in range(10)],
        ["two", "nine", "zero", "five", "four", "six", "one", "eight", "seven", "three"],
    ],
    ids=["wnids", "words of no language", "numbers", "classes", "hashes", "names of others"],
)
def test_names_that_say_nothing_are_noted(
    mini: handful.Backbone, support: handful.ImageSet, names: list[str]
):
    said = named(mini, support, names)
    assert "where chance has 10 %" in said and "linear-probe, logistic-probe" in said


def test_names_that_say_something_are_not(mini: handful.Backbone, support: handful.ImageSet):
    names = list(support.class_names)
    assert named(mini, support, names) == ""
    assert named(mini, support, [str(DIGITS.index(name)) for name in names]) == ""
    one = support[np.arange(0, 40, 4)]
    assert named(mini, one, names) == ""


def test_methods_that_read_no_names_or_need_them_little(mini: handful.Backbone, support: handful.ImageSet):
    assert named(mini, support, WNIDS, "logistic-probe") == ""
    said = named(mini, support, WNIDS, "linear-probe")
    assert "look like codes" in said and "take a method" not in said
    assert "look like codes" in named(mini, support, WNIDS, "coop")  # it has no text classifier of its own


def test_class_weights_that_say_nothing_are_called_that():
    features, labels, text = toy(8, noise=0.1)
    clf = handful.TipAdapter().fit(features, labels, class_names=NAMES, class_weights=-text)
    assert any("class weights given" in note for note in clf.notes_)


def clusters(classes: int, shots: int, right: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Give classes of images that are all alike, of which some are nearest to their own names."""
    names = torch.arange(classes)
    wrong = [row for row in range(classes) if row not in right]
    names[wrong] = names[wrong].roll(1)
    labels = torch.arange(classes).repeat_interleave(shots)
    return torch.eye(classes)[names][labels], torch.eye(classes), labels


def test_images_of_a_class_are_right_together():
    """Two classes of ten by luck are 200 of 1,000 images, which a test of images alone would believe."""
    assert check_names_say_something(*clusters(10, 100, [3, 8])).p_value > 0.1
    assert check_names_say_something(*clusters(10, 100, list(range(8)))).p_value <= 0.01
    assert check_names_say_something(*clusters(3, 100, [0, 1, 2])).p_value < 0.001


def test_few_images_can_say_neither():
    for right in ([], [0, 1]):
        found = check_names_say_something(*clusters(2, 1, right))
        assert found.p_value > 0.01 and found.poor > 0.05


def test_a_large_class_alone_says_nothing():
    features, text, labels = clusters(3, 100, [0])
    kept = torch.cat([torch.arange(100), torch.arange(100, 103), torch.arange(200, 203)])
    found = check_names_say_something(features[kept], text, labels[kept])
    assert found.accuracy == pytest.approx(1 / 3) and found.p_value > 0.1


@pytest.mark.parametrize(
    "names",
    [
        WNIDS,
        ["0", "1", "2"],
        ["SKU-117", "SKU-2044"],
        ["3f2a9c01", "deadbee5"],
        ["class 1", "class 2"],
        ["A1", "B2"],
    ],
)
def test_codes(names: list[str]):
    assert look_like_codes(names)


@pytest.mark.parametrize(
    "names",
    [
        ["cat", "dog"],
        ["three", "two"],
        ["1 euro coin", "2 cent piece"],
        ["5号电池", "7号电池"],
        ["Ente", "Öl"],
        ["ox", "n01440764", "owl"],
    ],
)
def test_no_codes(names: list[str]):
    assert not look_like_codes(names)

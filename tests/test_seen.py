"""An evaluation says which images the classifier has looked at before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import handful
from handful.evaluation import evaluate

Call = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    "clf",
    [
        handful.LinearProbe(), handful.TipAdapter(selection="support"),
        handful.TipAdapterF(epochs=1, views=2), handful.CoOp(epochs=1, views="online", length=2),
        handful.MMA(epochs=1, views=0, width=4), handful.FineTuning(epochs=1, views=0),
    ],
    ids=lambda clf: type(clf).__name__,
)  # fmt: skip
def test_images_it_learned_from_are_found(
    clf: handful.FewShotClassifier, tiny: handful.Backbone, support: handful.ImageSet,
    held_out: handful.ImageSet, tmp_path: Path,
):  # fmt: skip
    some = support[::4]
    clf.set_params(backbone=tiny).fit(some)
    again = handful.load(clf.save(tmp_path / "model"), tiny)
    seen = evaluate(again, some).seen
    assert seen is not None and (seen.support, seen.others, seen.accuracy_on_others) == (10, 0, None)
    new = evaluate(again, held_out[:20])
    assert new.seen is not None and (new.seen.images, new.seen.others) == (0, 20)
    assert not any("has seen" in note for note in new.notes)


def test_a_copy_a_link_and_pixels_are_the_image_and_another_format_is_not(
    mini: handful.Backbone, support: handful.ImageSet, tmp_path: Path
):
    path = Path(str(support.items[0]))
    name = support.class_names[support.labels[0]]
    clf = handful.TipAdapter(mini).fit(support)

    def count(item: object) -> int:
        found = evaluate(clf, [item, support.items[1]], [name, name]).seen  # type: ignore[list-item]
        assert found is not None
        return found.support - 1

    shutil.copy(path, tmp_path / "copy.png")
    (tmp_path / "link.png").symlink_to(path)
    Image.open(path).save(tmp_path / "again.bmp")
    assert count(tmp_path / "copy.png") == count(str(tmp_path / "link.png")) == 1
    assert count(tmp_path / "again.bmp") == 0
    pixels = [np.asarray(Image.open(item).convert("RGB")) for item in support.items[:2]]
    clf = handful.TipAdapter(mini).fit(pixels, ["a", "b"])
    seen = evaluate(clf, [Image.fromarray(pixel) for pixel in pixels], ["a", "b"]).seen
    assert seen is not None and seen.support == 2


def test_some_images_are_seen(calibrated: Path, support: handful.ImageSet, held_out: handful.ImageSet):
    clf = handful.load(calibrated)
    labels = [*(support.class_names[row] for row in support.labels[:3]),
              *(held_out.class_names[row] for row in held_out.labels[:7])]  # fmt: skip
    found = evaluate(clf, [*support.items[:3], *held_out.items[:7]], labels)
    assert found.seen is not None and (found.seen.support, found.seen.others) == (3, 7)
    assert found.seen.accuracy_on_others == clf.score(held_out[:7])
    assert found.notes[0].startswith("The classifier has seen 3 of these 10 images: 3 that it learned from.")
    assert "On the 7 others" in found.notes[0]


@pytest.mark.parametrize("selection", ["val", "oracle"])
def test_images_that_parameters_were_chosen_on_are_seen(
    selection: str, mini: handful.Backbone, support: handful.ImageSet, held_out: handful.ImageSet
):
    clf = handful.TipAdapter(mini, selection=selection).fit(support, validation=held_out[:20])
    seen = evaluate(clf, held_out[10:30]).seen
    assert seen is not None and (seen.support, seen.validation, seen.others) == (0, 10, 10)
    plain = handful.TipAdapter(mini).fit(support, validation=held_out[:20])  # which it did not look at
    seen = evaluate(plain, held_out[10:30]).seen
    assert seen is not None and seen.images == 0


def test_images_that_came_and_went(
    mini: handful.Backbone, support: handful.ImageSet, held_out: handful.ImageSet
):
    clf = handful.TipAdapter(mini).fit(support)
    name = held_out.class_names[0]
    more = held_out[held_out.labels == 0]
    clf.add_images(name, list(more.items))

    def count(images: handful.ImageSet) -> int:
        seen = evaluate(clf, images, other_classes="skip").seen
        assert seen is not None
        return seen.support

    assert (count(more), count(support)) == (len(more), len(support))
    clf.remove_class(name).add_class(name)
    assert (count(more), count(support)) == (0, len(support) - np.sum(support.labels == 0))


def test_zero_shot_and_older_classifiers_say_nothing(
    calibrated: Path, mini: handful.Backbone, support: handful.ImageSet, tmp_path: Path
):
    zero = handful.ZeroShot(mini).fit(support)
    assert evaluate(zero, support).seen is None
    clf = handful.load(calibrated)
    clf.fitted_ = replace(clf.fitted_, digests={})
    old = handful.load(clf.save(tmp_path / "old"))
    assert "digests" not in json.loads((tmp_path / "old" / "head.json").read_text())
    found = evaluate(old, support)
    assert found.seen is None and not any("has seen" in note for note in found.notes)
    old.add_images(support.class_names[0], support.items[0])  # from here on this one is known
    seen = evaluate(old, support).seen
    assert seen is not None and seen.support == 1


@pytest.mark.parametrize("digests", [[], {"support": 5}, {"support": [1]}, {"validation": "abc"}])
def test_damaged_digests_are_refused(digests: object, calibrated: Path, tmp_path: Path):
    shutil.copytree(calibrated, tmp_path / "model")
    path = tmp_path / "model" / "head.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"digests": digests}))
    with pytest.raises(handful.CheckpointError, match="digests"):
        handful.load(tmp_path / "model")


def test_a_score_on_seen_images_is_marked(
    calibrated: Path, support: handful.ImageSet, call: Call, tmp_path: Path
):
    shutil.copytree(calibrated, tmp_path / "model")
    table = tmp_path / "t.csv"
    rows = [
        f"{item},{support.class_names[row]}" for item, row in zip(support.items, support.labels, strict=True)
    ]
    table.write_text("\n".join(["path,label", *rows]))
    code, text, _ = call("evaluate", tmp_path / "model", table, "--record")
    assert code == 0
    assert "note: The classifier has seen 40 of these 40 images" in text
    assert "These figures say nothing of new images" in text
    score = handful.load(tmp_path / "model").fitted_.scores[0]
    assert score["seen"] == 40 and "balanced_accuracy" in score
    card = (tmp_path / "model" / "README.md").read_text()
    assert "says little of new images**: the classifier had seen 40 of these 40 images" in card


def test_info_counts_what_it_has_seen(calibrated: Path, call: Call):
    code, text, _ = call("info", calibrated)
    assert code == 0 and "digests: {'support': '40 images'}" in text
    assert len(json.loads(call("info", calibrated, "--json")[1])["digests"]["support"]) == 40

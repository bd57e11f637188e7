"""Class names in any script: kept, compared, saved; and what is refused says which it is."""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest

import handful
from handful.data.names import check_names, clean_name, name_key

SCRIPTS = {
    "Persian with a joiner": "می\u200cخواهم",
    "Malayalam with a joiner": "ക്\u200dഷ",
    "emoji with joiners": "👩\u200d🔬",
    "a family": "👨\u200d👩\u200d👧\u200d👦",
    "an emoji form": "❤\ufe0f",
    "a flag by tags": "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "a soft hyphen": "co\u00adop",
    "Hebrew with a mark": "שלום\u200f",
    "Hindi": "नमस्ते",
    "Thai": "ไทย",
    "Korean": "가나",
    "Chinese": "日本語",
    "accents": "été",
    "a letter for private use": "\ue000icon",
    "a letter newer than Python": "\U0001fbfa",
}
"""openai/CLIP#7, and others."""


@pytest.mark.parametrize("name", SCRIPTS.values(), ids=SCRIPTS)
def test_names_in_any_script_are_kept(name: str):
    assert check_names([name, "lamp"]) == (name, "lamp")


def test_folders_in_any_script_are_learned_saved_and_found(two_classes: Path, mini, tmp_path: Path):
    names = sorted(SCRIPTS.values())
    for number, name in enumerate(names):
        (two_classes / name).mkdir()
        (two_classes / name / "a.png").write_bytes((two_classes / f"lamp/{number % 3}.png").read_bytes())
    images = handful.ImageSet.from_folder(two_classes)
    assert set(images.class_names) == {*names, "lamp", "red panda"}
    clf = handful.LinearProbe(mini).fit(images)
    again = handful.load(clf.save(tmp_path / "m"), mini)
    assert again.class_names_ == images.class_names
    np.testing.assert_array_equal(again.predict_proba(images), clf.predict_proba(images))
    assert again.match(names).tolist() == [images.class_names.index(name) for name in names]


def test_accents_of_one_and_of_two_characters_are_one_name(two_classes: Path, mini):
    assert clean_name("e\u0301te\u0301_1") == "été 1"
    assert name_key("E\u0301t\u00e9") == name_key("\u00e9te\u0301") == "été"
    for name in ("e\u0301", "lamp"):  # as macOS writes folders
        (two_classes / "named" / name).mkdir(parents=True)
        (two_classes / "named" / name / "a.png").write_bytes((two_classes / "lamp/0.png").read_bytes())
    images = handful.ImageSet.from_folder(two_classes / "named")
    assert images.class_names == ("é", "lamp")
    clf = handful.METHODS["zero-shot"](mini).fit(images)
    assert clf.class_names_ == ("lamp", "é")
    assert clf.match(["E\u0301", "\u00c9"]).tolist() == [1, 1]
    (two_classes / "named/\u00e9").mkdir()
    with pytest.raises(handful.DataError, match="are one class name, encoded in two ways"):
        handful.ImageSet.from_folder(two_classes / "named")


@pytest.mark.parametrize("pair", [("é", "e\u0301"), ("É", "e\u0301"), ("Å", "\u212b"), ("ß", "SS")])
def test_two_names_of_one_class_are_refused(pair: tuple[str, str]):
    with pytest.raises(handful.DataError, match="duplicate class names"):
        check_names(pair)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\0b", r"a\x00b"), ("\x1b[31mred", r"\x1b[31mred"), ("del\x7f", r"del\x7f"), ("c1\x9b", r"c1\x9b"),
        ("a\nb", r"a\nb"), ("a\x85b", r"a\x85b"),
        ("\ud800", r"\ud800"), ("caf\udce9", r"caf\udce9"), ("caf\ufffd", "caf\ufffd"),
    ],
)  # fmt: skip
def test_control_characters_and_bytes_are_refused_by_name(name: str, shown: str):
    with pytest.raises(handful.DataError, match="Rename its folder, or mend its label") as caught:
        check_names(["lamp", name])
    assert f"Got the class name '{shown}', which holds a control character" in str(caught.value)


@pytest.mark.parametrize("name", ["", "_", " \u00a0", "\u200b", "\u00ad\u200d"])
def test_a_name_that_shows_nothing_is_empty(name: str):
    with pytest.raises(handful.DataError, match="empty class name"):
        check_names(["lamp", name])


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are text there")
def test_a_folder_whose_name_is_no_text_is_named(two_classes: Path):
    os.rename(two_classes / "lamp", os.fsencode(two_classes) + b"/caf\xe9")  # noqa: PTH104
    with pytest.raises(handful.DataError, match=r"Got the class name 'caf\\udce9'"):
        handful.ImageSet.from_folder(two_classes)


@pytest.mark.parametrize("method", ["zero-shot", "linear-probe", "cocoop"])
def test_saved_names_of_an_older_version_answer_as_they_did(
    method: str, tiny, two_classes: Path, tmp_path: Path
):
    """Versions up to 0.1 kept names in the form they were given, and prompts were made of that form."""
    images = handful.ImageSet.from_folder(two_classes)
    given = {"epochs": 1, "views": 0} if method == "cocoop" else {}
    folder = handful.METHODS[method](tiny, **given).fit(images).save(tmp_path / "m")
    facts = json.loads((folder / "head.json").read_text(encoding="utf-8"))
    names = ["e\u0301te\u0301", "\u00e9t\u00e9"]
    assert unicodedata.normalize("NFC", names[0]) == names[1]
    facts |= {"class_names": names, "classes": names}
    (folder / "head.json").write_text(json.dumps(facts), encoding="utf-8")
    clf = handful.load(folder, tiny)
    assert list(clf.class_names_) == names
    assert set(clf.predict(images)) <= set(names)
    assert clf.match(names).tolist() == [0, 1]
    again = handful.load(clf.save(tmp_path / "again"), tiny)
    np.testing.assert_array_equal(again.predict_proba(images), clf.predict_proba(images))

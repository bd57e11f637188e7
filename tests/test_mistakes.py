"""What was classified wrongly, as files, and each class as a line."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from handful.evaluation import Mistake
from handful.report.mistakes import contact_sheet, drawable

Call = Callable[..., tuple[int, str, str]]


def test_errors_are_written(calibrated: Path, few_digits: Path, call: Call, tmp_path: Path):
    files = [tmp_path / "new" / f"errors.{form}" for form in ("json", "csv", "png")]
    words = [word for file in files for word in ("--errors", file)]
    code, text, err = call("evaluate", calibrated, few_digits / "test", *words, "--json")
    facts = json.loads(text)
    assert code == 0 and len(facts["errors"]) == sum(sum(row) for row in facts["confusion"]) - sum(
        facts["confusion"][place][place] for place in range(10)
    )
    assert json.loads(files[0].read_text()) == facts["errors"]
    rows = list(csv.DictReader(io.StringIO(files[1].read_text())))
    assert [row["image"] for row in rows] == [one["image"] for one in facts["errors"]]
    assert [float(row["probability"]) for row in rows] == [one["probability"] for one in facts["errors"]]
    with Image.open(files[2]) as sheet:
        assert sheet.format == "PNG" and sheet.width > 1000
    assert err.count("images that are classified wrongly") == 3


@pytest.mark.parametrize("name", ["errors", "errors.txt", "errors.jpg"])
def test_another_form_is_refused_before_anything_is_read(name: str, call: Call):
    code, _, err = call("evaluate", "nowhere", "nowhere", "--errors", name)
    assert code == 1 and ".json, .csv or .png" in err


def test_errors_that_cannot_be_written_lose_no_answer(
    calibrated: Path, few_digits: Path, call: Call, tmp_path: Path
):
    (tmp_path / "file").write_text("")
    code, text, err = call(
        "evaluate", calibrated, few_digits / "test", "--errors", tmp_path / "file" / "e.json"
    )
    assert code == 1 and "Can't write" in err and "balanced accuracy" in text


def test_each_class_has_a_line_where_it_is_asked_for(
    calibrated: Path, few_digits: Path, call: Call, monkeypatch
):
    from handful.report import scores

    assert "recall %" in call("evaluate", calibrated, few_digits / "test")[1]
    monkeypatch.setattr(scores, "TABLE_UP_TO", 9)
    text = call("evaluate", calibrated, few_digits / "test")[1]
    assert "recall %" not in text and "worst classes: " in text
    assert "recall %" in call("evaluate", calibrated, few_digits / "test", "--per-class")[1]


NAMES = ["café ß", "中文", "قطة سوداء", "кошка", "a name that never ends and never ends", "x\udcff\ny"]


def test_a_contact_sheet_takes_any_name_and_image(tmp_path: Path):
    Image.new("RGB", (900, 3), "red").save(tmp_path / "pano.png")
    Image.new("L", (1, 1), 9).save(tmp_path / "one\nline.png")
    files = [tmp_path / "pano.png", tmp_path / "one\nline.png", tmp_path / "gone.png", "image 3", "a", "b"]
    errors = [
        Mistake(str(file), name, NAMES[number - 1], 0.9, 0.1)
        for number, (file, name) in enumerate(zip(files, NAMES, strict=True))
    ]
    heights = []
    for some in ([], errors[:1], errors, errors * 2, errors * 100):
        with Image.open(io.BytesIO(contact_sheet(some, 1000))) as sheet:
            heights.append(sheet.height)
    assert heights[0] < heights[1] == heights[2] < heights[3] < heights[4] < 2500  # 60 images at most


def test_what_a_font_lacks_is_drawn_with_another_or_escaped(monkeypatch: pytest.MonkeyPatch):
    from matplotlib import font_manager, get_data_path
    from matplotlib.ft2font import FT2Font

    fonts = Path(get_data_path()) / "fonts" / "ttf"
    here, there = (
        set(map(chr, FT2Font(str(fonts / name)).get_charmap()))
        for name in ("DejaVuSans.ttf", "STIXGeneral.ttf")
    )
    rare = next(char for char in sorted(there - here) if char.isprintable())
    assert drawable("кошка") == ("кошка", drawable("cat")[1])
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [])
    assert drawable(rare)[0] == rare.encode("unicode_escape").decode()
    entries = [font_manager.FontEntry(str(fonts / "STIXGeneral.ttf"), "STIX", "normal")]
    entries.append(font_manager.FontEntry(str(fonts / "LastResortHE-Regular.ttf"), "Last Resort", "normal"))
    monkeypatch.setattr(font_manager.fontManager, "ttflist", entries)
    text, font = drawable(rare)
    assert text == rare and font.getname()[0] == "STIXGeneral"
    assert drawable("中文")[0] == "\\u4e2d\\u6587"  # not a box that says what is missing
    assert drawable("a\nb\udcff")[0] == "a\\nb\\udcff"


def test_a_file_name_that_is_no_unicode(calibrated: Path, digits: Path, tmp_path: Path, call: Call):
    place = tmp_path / "data" / "zero" / os.fsdecode(b"\xff.png")
    place.parent.mkdir(parents=True)
    try:
        shutil.copy(next((digits / "test" / "eight").iterdir()), place)
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    files = [tmp_path / f"wrong.{form}" for form in ("json", "csv", "png")]
    words = [word for file in files for word in ("--errors", file)]
    code, text, _ = call("evaluate", calibrated, tmp_path / "data", "--json", *words)
    (wrong,) = json.loads(text)["errors"]
    assert (code, wrong["truth"], wrong["image"]) == (0, "zero", str(place))
    assert json.loads(files[0].read_text(encoding="utf-8")) == [wrong]
    assert all(file.stat().st_size for file in files)

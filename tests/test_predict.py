"""`predict` over many images: in parts, in files, stopped and gone on with."""

from __future__ import annotations

import csv
import errno
import json
import os
import sys
from ast import literal_eval
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import handful
from handful import answers, progress
from handful.answers import AnswerFile, answer_rows, file
from handful.features import loading

Call = Callable[..., tuple[int, str, str]]
Run = Callable[..., tuple[int, str, str]]
COUNT = 11


@pytest.fixture(scope="module")
def model(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = handful.few_shot(handful.ImageSet.from_folder(digits / "train", verify=False), 3)
    clf = handful.TipAdapter("mini").fit(images).calibrate(images, false_alarm=0.2)
    return clf.save(tmp_path_factory.mktemp("predict") / "model")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Eleven images and a file that is none, in folders."""
    for number in range(COUNT):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (20 * number, 90, 255 - 20 * number)).save(path)
    (tmp_path / "images" / "a" / "bad.png").write_text("no image")
    return tmp_path / "images"


@pytest.fixture
def run(call: Call, model: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call `predict MODEL IMAGES ...`, in parts of four images."""
    monkeypatch.setattr(loading, "BATCH", 4)
    return lambda *words: call("predict", model, images, *words)


def stop_after(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Press Ctrl-C once after some parts."""

    def stopped(*given: Any) -> Iterator[list[answers.Row]]:
        for number, rows in enumerate(answer_rows(*given)):
            if number == parts:
                monkeypatch.setattr(answers, "answer_rows", answer_rows)
                raise KeyboardInterrupt
            yield rows

    monkeypatch.setattr(answers, "answer_rows", stopped)


def read(path: Path) -> list[dict[str, Any]]:
    """Read a file of answers as columns, all texts."""
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as rows:
            return list(csv.DictReader(rows))
    if path.suffix == ".jsonl":
        flat = [answers.rows.flatten(json.loads(line)) for line in path.read_text("utf-8").splitlines()]
    else:
        flat = pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
    names = list(dict.fromkeys(name for row in flat for name in row))
    return [{name: "" if row.get(name) is None else str(row[name]) for name in names} for row in flat]


FORMS = [
    "csv", "jsonl",
    pytest.param("parquet", marks=pytest.mark.skipif(not find_spec("pyarrow"), reason="needs pyarrow")),
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_file_has_what_stdout_has(run: Run, images: Path, tmp_path: Path, form: str):
    words = ("--top", "2", "--unknown", "auto", "--coverage", "0.9")
    code, text, err = run(*words, "--json")
    told = json.loads(text)
    out = tmp_path / "new" / f"found.{form}"
    assert run(*words, "--out", out)[0] == code == 1  # one image is bad
    rows = read(out)
    assert [row["image"] for row in rows] == sorted(str(path) for path in images.rglob("*.png"))
    good = [row for row in rows if not row["error"]]
    assert len(good) == len(told["results"]) == COUNT
    for row, found in zip(good, told["results"], strict=True):
        assert (row["image"], row["unknown"]) == (found["image"], str(found["unknown"]))
        assert literal_eval(row["set"]) == found["set"]
        for end, best in zip(("", "_2"), found["predictions"], strict=True):
            assert (row[f"class{end}"], float(row[f"probability{end}"])) == (
                best["class"],
                best["probability"],
            )
    (bad,) = [row for row in rows if row["error"]]
    assert told["errors"] == [f"{bad['image']}: {bad['error']}"] and told["errors"][0] in err
    assert sorted(path.name for path in out.parent.iterdir()) == [out.name, f"{out.name}.run.json"]


def test_sets_on_the_command_line(call: Call, run: Run, model: Path, images: Path, tmp_path: Path):
    clf = handful.load(model)
    good = sorted(path for path in images.rglob("*.png") if path.stem != "bad")
    lines = run("--coverage", "0.5")[1].splitlines()
    for line, inside in zip(lines, clf.predict_set(good, 0.5), strict=True):
        assert line.endswith(f"; set at 50 %: {', '.join(inside) or 'none of these is likely'}")
    assert any(line.endswith("none of these is likely") for line in lines)
    best = json.loads(run("--coverage", "0.5", "--empty", "best", "--json")[1])["results"]
    assert all(one["set"][0] == one["predictions"][0]["class"] for one in best)
    out = tmp_path / "found.csv"
    assert run("--coverage", "0.5", "--out", out)[0] == 1
    assert "another --coverage" in run("--coverage", "0.6", "--out", out, "--resume")[2]
    assert "another --coverage" in run("--out", out, "--resume")[2]
    for words, said in {
        ("--coverage", "0.99"): "it takes 99", ("--coverage", "0.9", "--by", "class"): "it takes 9 of each",
        ("--coverage", "2"): "coverage=2", ("--by", "class"): "--coverage",
    }.items():  # fmt: skip
        code, _, err = run(*words)
        assert code and said in err, err
    zero = handful.ZeroShot("mini").fit(class_names=["a", "b"]).save(tmp_path / "zero")
    code, _, err = call("predict", zero, images, "--coverage", "0.9")
    assert code and "not calibrated" in err


@pytest.mark.parametrize("form", FORMS)
def test_a_run_that_was_stopped_goes_on(
    run: Run, images: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
):
    whole, out = tmp_path / f"whole.{form}", tmp_path / f"found.{form}"
    assert run("--out", whole)[0] == 1
    stop_after(2, monkeypatch)
    code, text, err = run("--out", out)
    assert (code, text) == (130, "") and "8 images are answered" in err and "--resume" in err
    lines = tmp_path / "found.parquet.rows.jsonl" if form == "parquet" else out
    kept = lines.read_bytes()
    with lines.open("ab") as half:
        half.write(b'"half a \xe4' if form == "csv" else b'{"image": "half a \xe4')
    code, _, err = run("--out", out)
    assert code == 1 and "--resume goes on with it" in err and lines.read_bytes().startswith(kept)
    code, text, err = run("--out", out, "--resume")
    assert code == 1 and "8 images are answered already" in err
    assert f"{out}: 12 images, 1 can't be read" in text
    assert read(out) == read(whole)
    if form != "parquet":
        assert out.read_bytes() == whole.read_bytes()
        assert out.read_bytes().startswith(kept)
    Image.new("RGB", (8, 8)).save(images / "b" / "zz.png")
    code, text, _ = run("--out", out, "--resume", "--json")
    assert (code, json.loads(text)) == (1, {"out": str(out), "images": 13, "errors": 1})
    assert read(out)[:-1] == read(whole) and read(out)[-1]["image"].endswith("zz.png")
    code, _, err = run("--out", out)
    assert code == 1 and "which are replaced" in err and len(read(out)) == 13


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_killed_at_any_byte(run: Run, images: Path, tmp_path: Path, form: str, model: Path):
    """Whatever was written when a run was killed, no whole row is lost and none is there twice."""
    name = images / "a" / 'new\nline, "quoted".png'
    Image.new("RGB", (8, 8), "red").save(name)
    run("--out", tmp_path / f"found.{form}")
    whole = (tmp_path / f"found.{form}").read_bytes()
    record = json.loads((tmp_path / f"found.{form}.run.json").read_text())
    for cut in range(1, len(whole) + 1, 3):
        (tmp_path / f"found.{form}").write_bytes(whole[:cut])
        opened = AnswerFile(tmp_path / f"found.{form}", record["asked"], 1, False, resume=True)
        with opened:
            pass
        left = (tmp_path / f"found.{form}").read_bytes()
        assert whole.startswith(left) and len(left) <= max(cut, len(whole.split(b"\n")[0]) + 1)
        assert opened.count == len(read(tmp_path / f"found.{form}")) == len(opened.done)
        assert whole[len(left) : cut].count(b"\n") <= 1  # in the name


def test_json_is_whole_after_ctrl_c(run: Run, monkeypatch: pytest.MonkeyPatch):
    stop_after(1, monkeypatch)
    code, text, err = run("--json")
    found = json.loads(text)
    assert code == 130 and found["interrupted"] and len(found["results"]) == 4
    assert "4 images are answered" in err
    assert "interrupted" not in json.loads(run("--json")[1])
    stop_after(0, monkeypatch)
    assert json.loads(run("--json")[1]) == {"results": [], "errors": [], "interrupted": True}


def test_lines_come_before_ctrl_c(run: Run, monkeypatch: pytest.MonkeyPatch):
    stop_after(2, monkeypatch)
    code, text, err = run()
    assert (code, len(text.splitlines())) == (130, 7) and "bad.png" in err  # of eight, one is bad
    assert "--out FILE keeps answers" in err


def test_another_classifier_or_question_is_refused(
    run: Run, call: Call, model: Path, images: Path, tmp_path: Path, digits: Path
):
    out = tmp_path / "found.csv"
    run("--out", out)
    before = out.read_bytes()
    for words, what in [(("--top", 2), "another --top"), (("--unknown", "0.5"), "another --unknown"),
                        (("--megapixels", 200), "another --megapixels")]:  # fmt: skip
        code, _, err = run("--out", out, "--resume", *words)
        assert (code, what in err, out.read_bytes()) == (1, True, before)
    clf = handful.load(model)
    same, other = clf.save(tmp_path / "same"), clf.remove_class("zero").save(tmp_path / "other")
    assert call("predict", same, images, "--out", out, "--resume")[0] == 1  # an image is bad, and no more
    code, _, err = call("predict", other, images, "--out", out, "--resume")
    assert (code, "another classifier" in err, out.read_bytes()) == (1, True, before)


def test_what_is_not_ours_is_left_as_it_is(run: Run, tmp_path: Path):
    out = tmp_path / "labels.csv"
    out.write_text("path,label\n")
    for words in ((), ("--resume",)):
        code, _, err = run("--out", out, *words)
        assert code == 1 and "not written by" in err and out.read_text() == "path,label\n"
    out.write_text("")
    assert run("--out", out)[0] == 1 and len(read(out)) == 12  # an empty file is nobody's
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join([*lines[:3], b"what,is,that,then,now\n", *lines[3:]]))
    code, _, err = run("--out", out, "--resume")
    assert code == 1 and "damaged" in err and len(out.read_bytes().splitlines()) == 14
    (tmp_path / "labels.csv.run.json").write_text("no JSON")
    assert "not written by" in run("--out", out, "--resume")[2]


@pytest.mark.parametrize(
    ("out", "hint"),
    [
        ("found.txt", "ends in .csv, .jsonl, .parquet"), ("found", "ends in"), (".", "that is a folder"),
        ("images/a/bad.png/found.csv", "can be written"), ("found.parquet", 'pip install "handful[parquet]"'),
    ],
)  # fmt: skip
def test_files_that_cannot_be(run: Run, tmp_path: Path, out: str, hint: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    code, text, err = run("--out", tmp_path / out)
    assert (code, text) == (1, "") and hint in err and "Traceback" not in err
    assert not list(tmp_path.glob("found*"))


def test_resume_needs_a_file_and_images_are_needed(run: Run, call: Call, model: Path, tmp_path: Path):
    assert run("--resume")[0] == 2
    (tmp_path / "none").mkdir()
    code, _, err = call("predict", model, tmp_path / "none", "--out", tmp_path / "found.csv")
    assert code == 1 and "where no image is" in err and not list(tmp_path.glob("found*"))
    code, _, err = run("--unknown", "sometimes", "--out", tmp_path / "found.csv")
    assert code == 1 and "unknown='sometimes'" in err


def test_a_full_disk_keeps_what_was_written(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out, put = tmp_path / "found.jsonl", AnswerFile._put

    def full(self: AnswerFile, text: str) -> None:
        if out.stat().st_size:
            put(self, text[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        put(self, text)

    monkeypatch.setattr(file.AnswerFile, "_put", full)
    code, _, err = run("--out", out)
    assert code == 1 and "No space left" in err and "--resume" in err
    monkeypatch.setattr(file.AnswerFile, "_put", put)
    assert run("--out", out, "--resume")[0] == 1
    assert len(read(out)) == len({row["image"] for row in read(out)}) == 12


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_of_any_bytes(run: Run, images: Path, tmp_path: Path):
    path = Path(os.fsdecode(os.fsencode(images) + b"/b/\xff\xfe.png"))
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    (tmp_path / "plain.png").rename(path)
    for form in ("csv", "jsonl"):
        out = tmp_path / f"found.{form}"
        assert run("--out", out)[0] == run("--out", out, "--resume")[0] == 1
        assert len(read(out)) == 13 and read(out)[-1]["image"].endswith(r"b/\udcff\udcfe.png")
    last = json.loads(out.read_text("utf-8").splitlines()[-1])
    assert last["image"] == str(path)  # which JSON can say


def test_only_a_few_images_are_held(model: Path, images: Path):
    """The paths come from a generator, which is never far ahead of the answers."""
    pulled = 0

    def paths() -> Iterator[Path]:
        nonlocal pulled
        for number in range(3000):
            pulled += 1
            yield images / "b" / ("01.png" if number % 100 else "nowhere.png")

    seen = 0
    for rows in answer_rows(handful.load(model), paths()):
        seen += len(rows)
        assert pulled - seen < 6 * loading.BATCH
    assert seen == 3000


def test_how_far_it_is_is_said_where_no_terminal_is(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(progress, "EVERY", 0.0)
    for words in ((), ("--out", tmp_path / "found.csv"), ("--json",)):
        _, text, err = run(*words)
        assert "Predicting: 8 of 12" in err and "s left" in err and "Predicting" not in text

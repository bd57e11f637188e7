"""A report says what the lines of a bench say, and marks what looked at the test set."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from test_bench import few_digits

import handful
from handful.bench import Bench, Line, run_bench
from handful.report.page import write_report
from handful.report.tables import (
    Group,
    accuracy_sheet,
    class_sheet,
    confusions,
    correctness,
    group,
    interval,
    paired_sheet,
)

assert few_digits  # a fixture


def line(method: str, seed: int, predicted: list[int], test: str = "test", **facts: object) -> Line:
    labels = np.array([0, 0, 1, 1])
    right = np.array(predicted) == labels
    return {
        "protocol": "few-shot", "data": "pets", "method": method, "shots": 4, "seed": seed, "test": test,
        "selection": "fixed", "backbone": {"name": "RN50/openai", "fingerprint": "f"},
        "splits": {}, "seconds": 1.0, "accuracy": float(right.mean()), "calibration_error": 0.1,
        "predicted": predicted, "per_class": [float(right[:2].mean()), float(right[2:].mean())],
    } | facts  # fmt: skip


LABELS = np.array([0, 0, 1, 1])
LINES = [
    line("zero-shot", 1, [0, 0, 1, 0]), line("zero-shot", 2, [0, 0, 1, 0]),
    line("linear-probe", 1, [0, 1, 1, 1]), line("linear-probe", 2, [0, 1, 1, 1]),
    line("tip-adapter", 1, [0, 0, 1, 1], selection="oracle"),
    line("tip-adapter", 2, [0, 0, 1, 1], selection="oracle"),
]  # fmt: skip


def test_tables_say_what_the_lines_say():
    (found,) = group(LINES)
    sheet = accuracy_sheet(found)
    assert sheet.rows[0][:3] == ["zero-shot", "fixed", "75.0 ± 0.0"]
    assert sheet.rows[2][1] == "**oracle**"
    assert any("upper bound" in note for note in sheet.notes)
    assert found.best("test") == "linear-probe"  # no oracle is called best
    changes = class_sheet(found, "test", ["cat", "dog"])
    assert ["dog", "50", "100", "+50"] in changes.rows
    assert ["cat", "100", "50", "-50"] in changes.rows
    assert confusions(found, "test", LABELS) == [(0, 1, 2, 1)]
    paired = paired_sheet(found, "test", LABELS)
    assert paired.rows[0][1] == "-"
    assert paired.rows[1][1].startswith("+0.0 [")
    assert paired.rows[1][1].endswith("(within noise)")
    assert "| zero-shot | fixed | 75.0 ± 0.0 |" in sheet.markdown()


def test_intervals_hold_the_truth_as_often_as_they_say():
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(60):
        truth = generator.normal(0.1, 0.3, 200)
        mean, low, high = interval(truth + generator.normal(0, 0.05, (3, 200)))
        assert low <= mean <= high
        inside += low <= 0.1 <= high
    assert inside >= 52
    same = correctness(LINES[:2], LABELS)
    assert interval(same - same) == (0, 0, 0)


def test_skipped_failed_and_published_are_shown():
    lines = [
        line("zero-shot", 1, [0, 0, 1, 1], test="base", protocol="base-to-new", shots=16, data="caltech101"),
        line("zero-shot", 1, [0, 0, 1, 0], test="new", protocol="base-to-new", shots=16, data="caltech101"),
        line(
            "linear-probe", 1, [0, 0, 1, 0], test="base", protocol="base-to-new", shots=16, data="caltech101"
        ),
    ]
    lines = [one | {"backbone": {"name": "ViT-B-16/openai", "fingerprint": "f"}} for one in lines]
    scored = {"accuracy", "predicted", "per_class", "calibration_error"}
    lines.append(
        {k: v for k, v in lines[2].items() if k not in scored} | {"test": "new", "skipped": "no images"}
    )
    lines.append(
        {k: v for k, v in lines[2].items() if k not in {*scored, "seconds"}}
        | {"method": "coop", "test": "", "error": "Oops"}
    )
    (found,) = group(lines)
    sheet = accuracy_sheet(found)
    assert sheet.header[2:5] == ["base", "new", "harmonic mean"]
    assert sheet.rows[0][2:5] == ["100.0 ± 0.0", "75.0 ± 0.0", "85.7"]
    assert sheet.rows[1][3] == "-"
    assert [next(r for r in sheet.rows if r[0] == "published: MMA")[i] for i in (0, 2, 3)] == [
        "published: MMA",
        "98.4",
        "94.0",
    ]
    assert "linear-probe can't: no images" in sheet.notes
    assert "coop failed 1 times: Oops" in sheet.notes


@pytest.mark.parametrize("figure", ["caltech101", "imagenet"])
def test_published_figures_belong_to_their_backbone(figure: str):
    cells = [line("zero-shot", 1, [0, 0, 1, 1], data=figure, shots=s) for s in (1, 16)]
    (found,) = group(cells)
    names = [row[0] for row in accuracy_sheet(found).rows]
    assert "published: Tip-Adapter-F" in names
    mini = Group(found.protocol, found.data, "mini", found.lines)
    assert [row[0] for row in accuracy_sheet(mini).rows] == ["zero-shot"]


def test_the_published_averages_are_those_of_their_rows():
    """methods.md §10.1: means of 11."""
    from handful.report.tables import _published

    rows = [figure for figure in _published() if figure["protocol"] == "few-shot"]
    means = {
        (method, shots): np.mean([row["values"][f"test {shots}"] for row in rows if row["method"] == method])
        for method in ("CLIP-Adapter", "Tip-Adapter", "Tip-Adapter-F")
        for shots in (1, 16)
    }
    expected = {
        ("CLIP-Adapter", 1): 62.67, ("CLIP-Adapter", 16): 74.44, ("Tip-Adapter", 1): 62.33,
        ("Tip-Adapter", 16): 70.32, ("Tip-Adapter-F", 1): 64.60, ("Tip-Adapter-F", 16): 75.83,
    }  # fmt: skip
    for key, value in expected.items():
        assert means[key] == pytest.approx(value, abs=0.006)
    assert len({row["data"] for row in rows}) == 11


def test_a_page_that_stands_alone(few_digits: Path, tmp_path: Path, call):
    out = tmp_path / "out"
    methods = ("zero-shot", "linear-probe", "tip-adapter:selection=oracle")
    for protocol, shots in (("few-shot", (1, 2)), ("base-to-new", (2,))):
        run_bench(Bench(protocol, (str(few_digits),), methods, out, shots=shots, seeds=(1, 2)))
    code, said, err = call("report", out)
    assert code == 0, err
    assert said.split() == [str(out / "report.md"), str(out / "report.html")]
    page, text = (out / "report.html").read_text(), (out / "report.md").read_text()
    assert "base-to-new, few, mini" in page
    assert "upper bound" in page
    assert "Worst confusions" in page
    assert not re.search(r"(src|href)=['\"](?!data:)", page)
    lines = [json.loads(row) for row in (out / "results.jsonl").read_text().splitlines()]
    base = [row for row in lines if row["method"] == "linear-probe" and row["test"] == "base"]
    mean = 100 * np.mean([row["accuracy"] for row in base])
    assert f"{mean:.1f} ±" in text
    with pytest.raises(handful.DataError, match="holds no results"):
        write_report(tmp_path / "nothing")

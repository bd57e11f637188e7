"""A report says what the lines of a bench say, and marks what looked at the test set."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import handful
from handful.analysis.manifold import manifold
from handful.bench import Bench, Line, run_bench
from handful.report import sheet_table
from handful.report.page import write_report
from handful.report.tables import (
    Group,
    accuracy_sheet,
    averages,
    class_sheet,
    confusions,
    correctness,
    group,
    interval,
    paired_sheet,
    published_tables,
)


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


def test_intervals_resample_draws_and_images():
    """A gain that differs between draws alone is as unsure as one that differs between images alone."""
    draws = np.repeat([[0.0], [0.1], [0.5]], 200, axis=1)
    for difference in (draws, np.repeat(np.repeat([[0.0, 0.1, 0.5]], 3, axis=0), 3, axis=1)):
        mean, low, high = interval(difference)
        assert mean == pytest.approx(0.2)
        assert low < 0.1
        assert high > 0.3


def test_backbones_of_one_name_are_kept_apart():
    other = [one | {"backbone": {"name": "RN50/openai", "fingerprint": "0123456789"}} for one in LINES]
    assert [found.backbone for found in group(LINES + other)] == ["RN50/openai 01234567", "RN50/openai f"]
    assert [len(found.lines) for found in group(LINES + other)] == [6, 6]


def test_a_sheet_in_the_terminal():
    """Its cells, in a terminal of usual width too; what looked at the test set is red."""
    (found,) = group(LINES)
    for width in (80, 110):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(sheet_table(accuracy_sheet(found)))
        text = " ".join(console.export_text().split())
        assert "tip-adapter" in text and "75.0 ±0.0" in text and "upper bound" in text
        assert "*" not in text
    table = sheet_table(accuracy_sheet(found))
    assert [str(cell.style) for cell in table.columns[1]._cells] == ["", "", "bold red"]


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
    assert sheet.rows[0][2:5] == ["100.0", "75.0", "85.7"]
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


def figures() -> list[tuple[dict, str, str, list[float]]]:
    """Every published row: its table, method, data set and figures."""
    return [
        (table, method, data, values)
        for table in published_tables()
        for method, rows in table["methods"].items()
        for data, values in rows.items()
    ]


def test_the_published_averages_are_those_of_their_rows():
    """An average over 11 data sets is the unweighted mean of 11 accuracies."""
    checked = 0
    for table, method, data, values in figures():
        rows = [own for name, own in table["methods"][method].items() if name != "average"]
        if data == "average" and len(rows) == 11:
            digits = 0.06 if all(round(value, 1) == value for value in values) else 0.0051
            means = np.mean(rows, axis=0)
            known = ~np.isnan(means)  # one published figure contradicts its own average
            np.testing.assert_allclose(means[known], np.array(values)[known], atol=digits)
            checked += int(known.sum())
    assert checked > 70
    assert len(figures()) > 300


def published_lines(method: str, protocol: str, seeds: tuple[int, ...] = (1,)) -> list[Line]:
    """Lines of a bench that found exactly what was published."""
    found = []
    for table, name, data, values in figures():
        if (name, table["protocol"]) == (method, protocol) and data != "average":
            for cell, value in zip(table["cells"], values, strict=True):
                test, _, shots = cell.rpartition(" ")
                found += [
                    line(method, seed, [0, 0, 1, 1], test, data=data, shots=int(shots), accuracy=value / 100,
                         protocol=protocol, backbone={"name": table["backbones"][0], "fingerprint": "f"})
                    for seed in seeds
                ]  # fmt: skip
    return found


@pytest.mark.parametrize(
    ("method", "base", "new", "harmonic"),
    [("CLIP", 69.34, 74.22, 71.70), ("CoOp", 82.69, 63.22, 71.66), ("CoCoOp", 80.47, 71.69, 75.83),
     ("MaPLe", 82.28, 75.14, 78.55), ("PromptSRC", 84.26, 76.10, 79.97)],
)  # fmt: skip
def test_averages_of_base_to_new_are_the_published_ones(
    method: str, base: float, new: float, harmonic: float
):
    """The harmonic mean of the averages, not the mean of harmonic means (Zhou et al. 2022b, table 1)."""
    (found,) = averages(group(published_lines(method, "base-to-new", (1, 2))))
    assert found.data == "average of 11 data sets"
    row = accuracy_sheet(found).rows[0]
    assert row[2:5] == [f"{base:.1f} ± 0.0", f"{new:.1f} ± 0.0", f"{harmonic:.1f}"]
    assert found.summary(method, 16) == pytest.approx(harmonic, abs=0.006)
    published = {row[0]: row for row in accuracy_sheet(found).rows}[f"published: {method}"]
    assert published[2:5] == [f"{base:.1f}", f"{new:.1f}", f"{harmonic:.1f}"]


@pytest.mark.parametrize(
    ("protocol", "method", "mean"),
    [("cross-dataset", "CoOp", 63.88), ("cross-dataset", "CoCoOp", 65.74), ("cross-dataset", "MMA", 66.61),
     ("domain-shift", "CoOp", 59.28), ("domain-shift", "CoCoOp", 59.91), ("domain-shift", "MMA", 60.48)],
)  # fmt: skip
def test_means_of_targets_are_the_published_ones(protocol: str, method: str, mean: float):
    """The source is no target (Zhou et al. 2022b, tables 2 and 3)."""
    (found,) = group(published_lines(method, protocol))
    assert found.summary(method, 16) == pytest.approx(mean, abs=0.006)
    assert averages([found]) == []
    sheet = accuracy_sheet(found)
    assert "mean of targets" in sheet.header
    assert f"{mean:.1f}" in sheet.rows[0]


def test_averages_over_data_sets_are_of_draws(few: int = 2):
    """A cell is averaged where every data set has it; the spread is of the means of each draw."""
    lines = [
        *(line("coop", seed, [0, 0, 1, 1], data="a", accuracy=0.1 * seed) for seed in (1, 2, 3)),
        *(line("coop", seed, [0, 0, 1, 1], data="b", accuracy=0.5) for seed in (1, 2)),
        line("mma", 1, [0, 0, 1, 1], data="a"),
    ]
    (found,) = averages(group(lines))
    assert found.mean("coop", "test", 4) == pytest.approx((32.5, 2.5))
    assert found.methods == ["coop"]
    assert found.title == f"few-shot, average of {few} data sets, RN50/openai"


def test_how_images_lie():
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 3
    noise = generator.normal(size=(60, 8)).astype(np.float32)
    unit = noise / np.linalg.norm(noise, axis=1, keepdims=True)
    apart = np.eye(8, dtype=np.float32)[labels]
    before, after = manifold(unit, labels), manifold(apart + 0.01 * unit, labels)
    assert after.silhouette > 0.9 > 0.1 > abs(before.silhouette)
    assert after.neighbours == 1.0 > before.neighbours
    assert before.places.shape == (60, 2)
    np.testing.assert_array_equal(before.labels, labels)
    alone = manifold(unit[:3], np.array([0, 1, 2]))  # no class has two images
    assert np.isnan(alone.silhouette)
    assert alone.neighbours == 0.0


def test_a_page_that_stands_alone(few_digits: Path, tmp_path: Path, call):
    out = tmp_path / "out"
    methods = ("zero-shot", "linear-probe", "tip-adapter:selection=oracle", "clip-adapter:epochs=1,views=0")
    for protocol, shots in (("few-shot", (1, 2)), ("base-to-new", (2,))):
        run_bench(Bench(protocol, (str(few_digits),), methods, out, shots=shots, seeds=(1, 2)))
    code, said, err = call("report", out)
    assert code == 0, err
    assert said.split() == [str(out / "report.md"), str(out / "report.html")]
    page, text = (out / "report.html").read_text(), (out / "report.md").read_text()
    assert "base-to-new, few, mini" in page
    assert "upper bound" in page
    assert "Worst confusions" in page
    assert page.count("<h3>How images lie") == 3  # few-shot, and base and new
    assert "| clip-adapter:epochs=1,views=0 |" in text[text.index("### How images lie") :]
    assert not re.search(r"(src|href)=['\"](?!data:)", page)
    lines = [json.loads(row) for row in (out / "results.jsonl").read_text().splitlines()]
    base = [row for row in lines if row["method"] == "linear-probe" and row["test"] == "base"]
    mean = 100 * np.mean([row["accuracy"] for row in base])
    assert f"{mean:.1f} ±" in text
    with pytest.raises(handful.DataError, match="holds no results"):
        write_report(tmp_path / "nothing")

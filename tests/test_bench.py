"""Benches: cells, kills, several processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import random
import signal
import time
import traceback
import warnings
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, write_model

import handful
from handful.bench import Bench, _work, read_results, read_spec, run_bench
from handful.data import open_dataset
from handful.protocols import (
    coop_probe_draw,
)

MEASURED = ("seconds", "predict_seconds", "peak_memory_mb")

QUICK = ("zero-shot", "linear-probe", "tip-adapter:alpha=2")


def settled(lines: list[dict]) -> list[dict]:
    """What doesn't depend on the machine's mood."""
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in lines]


def test_a_bench_goes_on_with_what_is_there(few_digits: Path, tmp_path: Path):
    bench = Bench("few-shot", (str(few_digits),), QUICK, tmp_path / "out", shots=(1, 2), seeds=(1, 2))
    lines = run_bench(bench)
    assert len(lines) == 12
    assert {line["method"] for line in lines} == set(QUICK)
    assert all(0 <= line["accuracy"] <= 1 and line["selection"] == "fixed" for line in lines)
    cells = sorted((tmp_path / "out" / "cells").iterdir())
    before = {cell: cell.stat().st_mtime_ns for cell in cells}
    cells[3].unlink()
    cells[5].write_text('{"half a line')
    again = run_bench(bench)
    assert settled(again) == settled(lines)
    assert [c for c in cells if c.stat().st_mtime_ns != before[c]] == [cells[3], cells[5]]
    kept = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert kept == again
    assert {line["cell"] for line in read_results(tmp_path / "out")} == {line["cell"] for line in lines}
    line = lines[0]
    test = next((tmp_path / "out" / "tests").iterdir())
    facts = json.loads(test.read_text())
    right = np.array(line["predicted"]) == np.array(facts["labels"])
    assert right.mean() == pytest.approx(line["accuracy"])


def killed(bench: Bench, seconds: float | None = None) -> bool:
    """Run in a process of its own that is killed some time after it finished a cell; say whether it was.

    With None it comes to its end.
    """
    cells = bench.out / "cells"
    before = len(list(cells.glob("*.jsonl")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of threads in the parent: they have no lock here
        child = os.fork()
    if not child:
        try:
            signal.alarm(60)
            torch.set_num_threads(1)
            run_bench(bench)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    if seconds is not None:
        while len(list(cells.glob("*.jsonl"))) <= before:
            time.sleep(0.001)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_killed_at_any_moment_it_ends_with_the_same_table(
    few_digits: Path, tmp_path: Path, tiny: handful.Backbone
):
    def bench(out: str) -> Bench:
        found = Bench("few-shot", (str(few_digits),), QUICK, tmp_path / out, shots=(1, 2, 4), seeds=(1, 2, 3))
        vars(found)["model"] = tiny
        return found

    def lines(out: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (tmp_path / out / "results.jsonl").read_text().splitlines()]

    assert not killed(bench("calm"))  # a process like the others: sums come in the same order
    calm, moments = lines("calm"), random.Random(7)
    kills = sum(killed(bench("killed"), moments.uniform(0, 0.05)) for _ in range(4))
    assert kills
    assert len(list((tmp_path / "killed" / "cells").glob("*.jsonl"))) < len(calm)
    assert not killed(bench("killed"))
    assert settled(lines("killed")) == settled(calm)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_several_processes_give_the_same(few_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With processes that begin as a copy of this one, where a bench starts new ones: those take seconds."""
    fork, asked = multiprocessing.get_context("fork"), []
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: asked.append(method) or fork)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)  # a thread each: a copy may not have more
    benches = {
        jobs: Bench(
            "few-shot", (str(few_digits),), QUICK[::2], tmp_path / str(jobs), shots=(1,), seeds=(1, 2)
        )
        for jobs in (1, 2)
    }
    one, two = (settled(run_bench(bench, jobs)) for jobs, bench in benches.items())
    for left, right in zip(one, two, strict=True):
        assert left["predicted"] == right["predicted"]
        assert left["cell"] == right["cell"]
    assert asked == ["spawn"]


def test_every_process_does_its_share(few_digits: Path, tmp_path: Path):
    """And what a new process is given can be sent to it."""
    bench = Bench("few-shot", (str(few_digits),), QUICK, tmp_path / "out", shots=(1,), seeds=(1, 2, 3))
    threads, shares = torch.get_num_threads(), []
    for number in range(2):
        work, arguments = pickle.loads(ForkingPickler.dumps((_work, (bench, number, 2))))
        work(*arguments)
        shares.append({line["cell"] for line in read_results(tmp_path / "out")})
    torch.set_num_threads(threads)
    assert [len(share) for share in shares] == [5, 9]


def test_a_cell_belongs_to_its_backbone(few_digits: Path, tmp_path: Path):
    """Other weights under the same name are another backbone."""
    found = []
    for seed in (0, 1):
        config, weights = write_model(tmp_path / "model", TINY, seed)
        bench = Bench(
            "few-shot", (str(few_digits),), ("zero-shot",), tmp_path / "out", str(config), str(weights),
            shots=(1,), seeds=(1,),
        )  # fmt: skip
        found += run_bench(bench)
    assert found[0]["backbone"]["name"] == found[1]["backbone"]["name"]
    assert found[0]["cell"] != found[1]["cell"]
    assert found[0]["predicted"] != found[1]["predicted"]
    assert len(read_results(tmp_path / "out")) == 2
    assert len(list((tmp_path / "out" / "tests").iterdir())) == 2


def test_a_failing_fit_is_a_line_and_the_others_go_on(few_digits: Path, tmp_path: Path, call):
    methods = ["zero-shot", "tip-adapter:alpha=-1", "linear-probe"]
    words = [word for name in methods for word in ("--methods", name)]
    code, out, err = call(
        "bench", "few-shot", "--data", few_digits, "--shots", "1", "--seeds", "1",
        "--out", tmp_path / "out", "--json", *words,
    )  # fmt: skip
    assert code == 1
    assert json.loads(out)["errors"] == 1
    assert "tip-adapter:alpha=-1" in err
    assert "alpha=-1" in err
    lines = read_results(tmp_path / "out")
    assert {line["method"] for line in lines if "accuracy" in line} == {"zero-shot", "linear-probe"}


def test_a_method_that_cannot_says_why(few_digits: Path, tmp_path: Path):
    bench = Bench(
        "base-to-new", (str(few_digits),), ("zero-shot", "linear-probe"), tmp_path, shots=(2,), seeds=(1,)
    )
    found = {(line["method"], line["test"]): line for line in run_bench(bench)}
    assert "accuracy" in found["zero-shot", "new"]
    assert "accuracy" in found["linear-probe", "base"]
    assert "knows its classes from their images" in found["linear-probe", "new"]["skipped"]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"protocol": "many-shot"}, "protocol='many-shot'"),
        ({"methods": ("tip",)}, "method='tip'"),
        ({"methods": ("tip-adapter:gamma=1",)}, "gamma"),
        ({"methods": ("tip-adapter:gamma",)}, "name:parameter=value"),
        ({"data": ("nowhere",)}, "data='nowhere'"),
        ({"data": ()}, "at least one"),
        ({"shots": (0,)}, "shots=0"),
        ({"protocol": "cross-dataset"}, "at least one other"),
    ],
)
def test_bad_benches(few_digits: Path, tmp_path: Path, changes: dict, match: str):
    whole = {"protocol": "few-shot", "data": (str(few_digits),), "methods": ("zero-shot",), "out": tmp_path}
    with pytest.raises((handful.ParameterError, handful.DataError), match=match):
        run_bench(Bench(**{**whole, **changes}))
    for path in ("pkg.module:Class", "module:Class"):
        assert read_spec(path) == (path, {})


def test_coops_probe_is_a_protocol(few_digits: Path, tmp_path: Path, mini: handful.Backbone):
    """Its draws, and C chosen on their validation images: what fitting on their features finds."""
    words = ("coop-probe", (str(few_digits),), ("logistic-probe:selection=val",), tmp_path / "out")
    with pytest.raises(handful.DataError, match="has no val part"):
        run_bench(Bench(*words, shots=(2,), seeds=(1,)))
    (few_digits / "val").symlink_to(few_digits / "train")
    lines = run_bench(Bench(*words, shots=(1, 2), seeds=(1, 2)))
    data = open_dataset(few_digits)
    train, test = data.part("train"), data.part("test")
    x, unseen = (handful.encode(mini, images) for images in (train, test))
    for line in lines:
        rows, some = coop_probe_draw(train, train, line["shots"], line["seed"])
        clf = handful.LogisticProbe(mini, selection="val").fit(
            x[rows],
            train.labels[rows],
            class_names=train.class_names,
            validation=(x[some], train.labels[some]),
        )
        assert (line["selection"], line["protocol"]) == ("val", "coop-probe")
        assert line["accuracy"] == pytest.approx(clf.score(unseen, test.labels))

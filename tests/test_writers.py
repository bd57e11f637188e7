"""Writers that fail, are killed, or meet: the old content or the new, no third."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import threading
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import dies_at, file_operations
from torch import Tensor
from writers import ROUNDS, classifiers, together

import handful
from handful import checkpoint
from handful.analysis import layers
from handful.bench import Bench, read_results, run_bench
from handful.features.store import Store
from handful.features.views import scratch
from handful.files import cache_folder
from handful.refiner import Refiner, load_refiner
from handful.report import page
from handful.report.page import write_report
from handful.resume import Snapshot, SnapshotStore
from handful.schedule import seeded

MOST = 300
"""File operations of the longest writer, at most."""

TAKES_ROOM = ("open", "write", "fsync", "mkdir", "posix_fallocate")
"""What a full disk refuses; the others work."""


@dataclass
class Writer:
    """A writer of two contents, number 0 and number 1, and what a reader finds."""

    folder: Path
    write: Callable[[int], object]
    read: Callable[[], list[int]]
    """Which content there is, for each part that is written on its own; an error for a third."""
    prepare: Callable[[int], object] = lambda number: None
    """What must be there for the writer to find, and is not its work."""

    def start(self) -> None:
        """Write content 0, and keep a copy of it all."""
        self.prepare(0)
        self.write(0)
        self.prepare(1)
        assert set(self.read()) == {0}
        shutil.copytree(self.folder, self.kept, symlinks=True)

    @property
    def kept(self) -> Path:
        """The copy."""
        return self.folder.with_name("kept")

    def put_back(self) -> None:
        """Put content 0 back."""
        shutil.rmtree(self.folder)
        shutil.copytree(self.kept, self.folder, symlinks=True)

    def leftovers(self) -> list[str]:
        """Files that only a writer at work has; tensors lie ready until they are where they belong."""
        found = [path.name for path in self.folder.rglob("*.tmp")]
        for ready in self.folder.rglob("head-*.safetensors"):
            sha = json.loads(ready.with_name("head.json").read_text())["tensors"]
            placed = hashlib.sha256(ready.with_name("head.safetensors").read_bytes()).hexdigest()
            found += [ready.name] if placed == sha else []
        return found


def which(found: Any, contents: list[Any]) -> int:
    """Give the number of a content, and no third."""
    assert found in contents
    return contents.index(found)


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Whether tensors are the same to the bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def classifier(folder: Path, tiny: handful.Backbone) -> Writer:
    both = classifiers()

    def read() -> list[int]:
        clf = handful.load(folder / "a")
        number = which(clf.alpha, [1.0, 2.0])
        assert same(clf.head_.tensors(), both[number].head_.tensors())
        return [number]

    return Writer(folder, lambda number: both[number].save(folder / "a"), read)


def learned(folder: Path, tiny: handful.Backbone) -> Writer:
    images = [np.full((9, 9, 3), 20 * number, np.uint8) for number in range(4)]
    both = [
        handful.TextTuning(tiny, form="bias", epochs=1, views=0, lr=lr).fit(images, ["a", "b"] * 2)
        for lr in (0.1, 0.2)
    ]
    path = folder / "a.safetensors"

    def read() -> list[int]:
        tensors, facts = checkpoint.read_learned(path)
        number = which(facts["parameters"]["lr"], [0.1, 0.2])
        assert same(tensors, both[number].learned())
        return [number]

    return Writer(folder, lambda number: both[number].save_learned(path), read)


def refiner(folder: Path, tiny: handful.Backbone) -> Writer:
    facts = {
        "method": "meta-adapter", "parameters": {}, "class_names": ["a"], "head": {}, "selection": "fixed",
        "backbone": {"name": "x", "fingerprint": "f"},
    }  # fmt: skip
    both = [Refiner(8, facts | {"number": number}).reset(seeded(number)) for number in range(2)]

    def read() -> list[int]:
        found = load_refiner(folder / "a")
        assert same(found.tensors(), both[found.facts["number"]].tensors())
        return [found.facts["number"]]

    return Writer(folder, lambda number: both[number].save(folder / "a"), read)


def store(folder: Path, tiny: handful.Backbone) -> Writer:
    """The second shard lies beside the first, which is there whatever happens."""
    shards = [
        {f"{10 * number + row:064x}": (torch.full((1, 4), float(row)), torch.ones(1, 3)) for row in range(3)}
        for number in range(2)
    ]
    wanted = {name for rows in shards for name in rows}

    def read() -> list[int]:
        found = Store(folder).read(wanted)
        whole = [rows.keys() <= found.keys() for rows in shards]
        assert len(found) == 3 * sum(whole)
        assert all(torch.equal(found[n][0], rows[n][0]) for rows in shards for n in rows if n in found)
        return [which(whole, [[True, False], [True, True]])]

    return Writer(folder, lambda number: Store(folder).write(shards[number]), read)


def training(folder: Path, tiny: handful.Backbone) -> Writer:
    snapshots = [Snapshot(n + 1, [0.5] * (n + 1), {"parameter.0": torch.full((5,), n)}) for n in range(2)]
    store = SnapshotStore("a training")
    store.path = folder / "a.safetensors"

    def read() -> list[int]:
        found = store.read()
        assert found is not None
        number = which(found.epochs, [1, 2])
        assert same(found.tensors, snapshots[number].tensors)
        return [number]

    return Writer(folder, lambda number: store.write(snapshots[number]), read)


def two_benches(folder: Path, tiny: handful.Backbone) -> list[Bench]:
    """The second has one draw more."""
    rng, data = np.random.default_rng(0), folder.with_name("data")
    for part in ("train", "test"):
        for name in ("lamp", "mug"):
            (data / part / name).mkdir(parents=True)
            for number in range(2):
                pixels = rng.integers(0, 255, (9, 9, 3), np.uint8)
                handful.data.images.Image.fromarray(pixels).save(data / part / name / f"{number}.png")
    both = [
        Bench("few-shot", (str(data),), ("zero-shot",), folder, "tiny", shots=(1,), seeds=seeds)
        for seeds in ((1,), (1, 2))
    ]
    for bench in both:
        vars(bench)["model"] = tiny
    return both


def bench(folder: Path, tiny: handful.Backbone) -> Writer:
    both = two_benches(folder, tiny)

    def read() -> list[int]:
        rows = [json.loads(row) for row in (folder / "results.jsonl").read_text().splitlines()]
        cells = read_results(folder)
        assert all(row["accuracy"] >= 0 for row in cells)
        for file in (folder / "features").glob("*.npz"):
            with np.load(file) as kept:
                assert kept["features"].shape == (4, 16)
        for file in (folder / "tests").glob("*.json"):
            assert len(json.loads(file.read_text())["labels"]) == 4
        seeds = [[line["seed"] for line in lines] for lines in (rows, cells)]
        return [which(found, [[1], [1, 2]]) for found in seeds]

    return Writer(folder, lambda number: run_bench(both[number], progress=False), read)


def report(folder: Path, tiny: handful.Backbone) -> Writer:
    both = two_benches(folder, tiny)
    contents: list[dict[str, bytes]] = []

    def prepare(number: int) -> None:
        run_bench(both[number], progress=False)
        shutil.rmtree(folder / "tests")  # what makes a report slow is of no use here
        before = {file: file.read_bytes() for file in folder.glob("report.*")}
        contents.append({path.name: path.read_bytes() for path in write_report(folder)})
        for path in folder.glob("report.*"):
            path.unlink()
        for file, data in before.items():
            file.write_bytes(data)

    def read() -> list[int]:
        return [
            which((folder / name).read_bytes(), [one[name] for one in contents])
            for name in ("report.md", "report.html")
        ]

    return Writer(folder, lambda number: write_report(folder), read, prepare)


def measured(images: int) -> layers.LayerAnalysis:
    """What an analysis of so many images found."""
    score, pair = (
        layers.LayerScore("text", "1", 1.0, 0.5, 0.1, 0.4),
        layers.Alignment("1", "1", 1.0, 0.5, 0.1),
    )
    return layers.LayerAnalysis("tiny", {"a": 2, "b": 3}, images, 0.5, [score], [pair])


def analysis(folder: Path, tiny: handful.Backbone) -> Writer:
    both = [measured(10), measured(20)]
    contents: list[dict[str, bytes]] = []
    for number, found in enumerate(both):
        paths = layers.write_analysis(found, folder.with_name(f"calm {number}"))
        contents.append({path.name: path.read_bytes() for path in paths})

    def read() -> list[int]:
        return [
            which((folder / name).read_bytes(), [one[name] for one in contents])
            for name in ("layers.json", "layers.md", "layers.png")
        ]

    return Writer(folder, lambda number: layers.write_analysis(both[number], folder), read)


WRITERS = (classifier, learned, refiner, store, training, bench, report, analysis)


@pytest.fixture
def writer(request: pytest.FixtureRequest, tiny: handful.Backbone, tmp_path: Path, monkeypatch) -> Writer:
    """What has content 0, and is to get content 1."""
    monkeypatch.setattr(layers, "draw_layers", lambda found: b"%d" % found.images)  # pictures are slow, and
    monkeypatch.setattr(page, "draw", lambda found: [])  # drawn before anything is written
    (tmp_path / "place").mkdir()
    made: Writer = request.param(tmp_path / "place", tiny)
    made.start()
    return made


# -- writers --------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Features are not cached", "ignore:The training is not kept")
@pytest.mark.parametrize(
    ("how", "way"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), {"only": TAKES_ROOM}),
        (OSError(errno.EIO, "Input/output error"), {"once": True}),
        (KeyboardInterrupt(), {"once": True}),
    ],
    ids=["full disk", "one error", "Ctrl-C"],
)
@pytest.mark.parametrize("writer", WRITERS, indirect=True)
def test_a_writer_that_fails_leaves_the_old_or_the_new(
    writer: Writer, how: BaseException, way: dict[str, Any]
):
    """At its n-th operation, for every n until it succeeds."""
    seen: set[int] = set()
    for number in range(1, MOST):
        writer.put_back()
        failed = dies_at(number, how, lambda: writer.write(1), **way)
        seen |= set(writer.read())
        if failed not in ("unlink", "remove"):
            assert writer.leftovers() == []
        if not failed:
            break
    assert not failed
    assert number > 3
    assert seen == {0, 1}
    assert set(writer.read()) == {1}


@pytest.mark.parametrize("writer", WRITERS, indirect=True)
def test_a_folder_that_can_only_be_read(writer: Writer):
    """Where root may write all the same, every operation says no."""
    before = {path: path.stat().st_mtime_ns for path in writer.folder.rglob("*")}
    refusal = OSError(errno.EROFS, "Read-only file system")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that features, or a training, are not kept
        assert dies_at(1, refusal, lambda: writer.write(1))
    assert {path: path.stat().st_mtime_ns for path in writer.folder.rglob("*")} == before


def killed_at(number: int, action: Callable[[], object]) -> bool:
    """Run in a process of its own that is killed at a file operation; say whether it was."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of threads in the parent: they have no lock here
        child = os.fork()
    if not child:
        left = number

        def before(name: str) -> None:
            nonlocal left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            signal.alarm(60)
            torch.set_num_threads(1)
            with file_operations(before):
                action()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("writer", [classifier, learned, store, training, bench], indirect=True)
def test_a_writer_that_is_killed_leaves_the_old_or_the_new(writer: Writer):
    """At its n-th operation, for every n; whoever comes after it writes as ever."""
    seen: set[int] = set()
    for number in range(1, MOST):
        writer.put_back()
        killed = killed_at(number, lambda: writer.write(1))
        seen |= set(writer.read())
        writer.write(1)
        assert set(writer.read()) == {1}
        if not killed:
            break
    assert not killed
    assert number > 3
    assert seen == {0, 1}


@pytest.mark.parametrize("writer", [classifier, learned, refiner, training], indirect=True)
def test_two_writers_at_once_leave_one_of_both(writer: Writer):
    """And whoever reads meanwhile finds one of both too."""
    for _ in range(ROUNDS):
        together([lambda: writer.write(0), lambda: writer.write(1), writer.read, writer.read])
        assert len(set(writer.read())) == 1
        assert writer.leftovers() == []


def test_two_writers_at_once_add_to_one_store(tmp_path: Path):
    rows = {f"{row:064x}": (torch.full((1, 4), float(row)), None) for row in range(2 * ROUNDS)}
    names, both = list(rows), threading.Barrier(2)

    def write(first: int) -> None:
        for name in names[first::2]:
            both.wait()
            Store(tmp_path).write({name: rows[name]})

    together([lambda: write(0), lambda: write(1)])
    found = Store(tmp_path).read(set(names))
    assert all(torch.equal(found[name][0], rows[name][0]) for name in names)
    assert len(list(tmp_path.iterdir())) == len(names)


def test_scratch_on_a_disk_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path / "cache"))
    full = OSError(errno.ENOSPC, "No space left on device")
    for number in range(1, MOST):
        died = dies_at(number, full, lambda: scratch((3, 5)).fill_(1.0), only=TAKES_ROOM)
        assert [*tmp_path.rglob("*")] in ([], [cache_folder()])
        if not died:
            break
    assert not died and number > 2
    with pytest.raises(handful.DataError, match=r"cache='disk'.*No space left"), file_operations(_full):
        scratch((3, 5))


def _full(name: str) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")

"""Benches: every method on every draw of a protocol, one small file for each fit.

A file is written to a unique temporary name and renamed, so a run may be killed at any moment, and two may
work in one folder: what is finished is never computed again, and the table at the end is the same.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from handful.backbones import Backbone, load_backbone
from handful.data import Dataset, open_dataset
from handful.errors import DataError, ParameterError, check_integer, unexpected
from handful.estimator import FewShotClassifier
from handful.files import write_atomically
from handful.methods import METHODS, find_method, read_value
from handful.metrics import accuracy, calibration_error, per_class_accuracy
from handful.progress import bar
from handful.protocols import (
    PROTOCOLS,
    SEEDS,
    Draw,
    answer,
    base_to_new,
    coop_probe_draws,
    cross_category,
    cross_dataset,
    domain_shift,
    few_shot_draws,
    fit,
)

JOINED = ("cross-dataset", "domain-shift")
"""Protocols that learn on the first data set and test on all."""
MOST_FEATURES = 1000
"""Of a test set, kept for the picture of how images lie."""
Line = dict[str, Any]
"""What is known of one method on one test set of one draw."""


@dataclass(frozen=True)
class Bench:
    """What to run, and where.

    Attributes
    ----------
    protocol
        One of `handful.protocols.PROTOCOLS`.
    data
        Names in the catalogue, or paths (`handful.data.open_dataset`); for cross-dataset and domain-shift the
        first is learned on.
    methods
        `name`, or `name:parameter=value,...`.
    out
        The folder of results.
    root
        Where the catalogue's data sets lie.
    shots, seeds
        Of the draws.
    """

    protocol: str
    data: tuple[str, ...]
    methods: tuple[str, ...]
    out: Path
    backbone: str = "mini"
    weights: str | None = None
    root: str | None = None
    shots: tuple[int, ...] = (16,)
    seeds: tuple[int, ...] = SEEDS

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise unexpected("protocol", self.protocol, f"one of {list(PROTOCOLS)}")
        for name in ("data", "methods", "shots", "seeds"):
            if not getattr(self, name):
                raise unexpected(name, (), "at least one")
        for shots in self.shots:
            check_integer("shots", shots, 1)
        if self.protocol in JOINED and len(self.data) < 2:
            raise unexpected(
                "data", self.data, f"the set to learn on and at least one other, for {self.protocol}"
            )

    @cached_property
    def model(self) -> Backbone:
        """The backbone, loaded once."""
        return load_backbone(self.backbone, weights=self.weights)

    @cached_property
    def sets(self) -> list[Dataset]:
        """The data sets, opened once."""
        found = [open_dataset(name, self.root) for name in self.data]
        names = [data.name for data in found]
        if len(set(names)) < len(names):
            raise unexpected("data", names, "data sets of different names")
        return found

    def draws(self) -> Iterator[tuple[list[Dataset], Draw]]:
        """Give the draws, with the data sets that each is of."""
        if self.protocol in JOINED:
            joined = cross_dataset if self.protocol == "cross-dataset" else domain_shift
            draws = joined(self.sets[0], self.sets[1:], self.shots, self.seeds)
            yield from ((self.sets, draw) for draw in draws)
            return
        for data in self.sets:
            yield from (([data], draw) for draw in self._draws_of(data))

    def _draws_of(self, data: Dataset) -> Iterator[Draw]:
        """Give the draws of a protocol that learns and tests on one data set."""
        if self.protocol == "cross-category":
            return cross_category(self.model, data, self.shots, self.seeds)
        train, test = data.part("train"), data.part("test")
        if self.protocol == "base-to-new":
            return base_to_new(train, test, self.shots, self.seeds)
        if self.protocol == "coop-probe":
            return coop_probe_draws(train, data.part("val"), test, self.shots, self.seeds)
        return few_shot_draws(train, test, self.shots, self.seeds, data.parts.get("val"))

    def method(self, spec: str, data: Dataset) -> FewShotClassifier:
        """Build a method from its text; it has the data set's templates unless it names others."""
        name, parameters = read_spec(spec)
        cls = find_method(name)
        known = set(cls._get_param_names()) - {"backbone"}
        if not set(parameters) <= known:
            raise unexpected("methods", spec, f"parameters among {sorted(known)}")
        own = {"templates": data.templates} if "templates" in known else {}
        return cls(self.model, **{**own, **parameters})

    def jobs(self) -> Iterator[Job]:
        """Give every fit, in a fixed order."""
        for sets, draw in self.draws():
            for spec in self.methods:
                yield Job(self, spec, self.method(spec, sets[0]), sets, draw)


def read_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """Read `name:parameter=value,...`; a value is JSON where it is, a word where it isn't."""
    name, colon, rest = spec.partition(":")
    if colon and "=" not in spec and name not in METHODS:  # pkg.module:Class
        return spec, {}
    found: dict[str, Any] = {}
    for pair in filter(None, rest.split(",")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise unexpected("methods", spec, "name, or name:parameter=value,...")
        found[key] = read_value(value)
    return name, found


@dataclass(frozen=True)
class Job:
    """One fit, and the test sets it is scored on."""

    bench: Bench
    spec: str
    method: FewShotClassifier
    sets: list[Dataset]
    draw: Draw

    @cached_property
    def facts(self) -> Line:
        """Identity of the fit."""
        parameters = self.method.get_params(deep=False)
        parameters.pop("backbone")
        model = self.bench.model
        return {
            "protocol": self.bench.protocol,
            "data": self.sets[0].name,
            "splits": {data.name: data.split for data in self.sets},
            "method": self.spec,
            "parameters": json.loads(json.dumps(parameters, default=str)),
            "shots": self.draw.shots,
            "seed": self.draw.seed,
            "backbone": {"name": model.title, "fingerprint": model.fingerprint},
        }

    @cached_property
    def id(self) -> str:
        """A hash of the identity, which names its file."""
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()[:24]

    @property
    def path(self) -> Path:
        """The file of its lines."""
        return self.bench.out / "cells" / f"{self.id}.jsonl"

    def lines(self, failed: bool = False) -> list[Line] | None:
        """Give what is kept of it; None if it isn't finished, or failed and that isn't asked for."""
        try:
            found = [json.loads(line) for line in self.path.read_bytes().splitlines()]
        except (OSError, ValueError):
            return None
        return found if failed or not any("error" in line for line in found) else None

    def run(self) -> list[Line]:
        """Fit and score; an error becomes a line of its own."""
        every = {"cell": self.id, **self.facts}
        try:
            start = time.perf_counter()
            clf = fit(self.method, self.draw)
            seconds = time.perf_counter() - start
        except Exception as error:
            return [{**every, "test": "", "error": f"{type(error).__name__}: {error}"}]
        known = clf.info()
        every |= {name: known[name] for name in ("selection", "selected", "notes", "versions")}
        every |= {"seconds": round(seconds, 4), "machine": platform.platform()}
        return [self._score(clf, test, every) for test in self.draw.tests]

    def _score(self, clf: FewShotClassifier, test: str, every: Line) -> Line:
        images = self.draw.tests[test]
        line = {**every, "test": test, "images": len(images), "classes": len(images.class_names)}
        start = time.perf_counter()
        try:
            logits = answer(clf, images)
        except ParameterError as error:
            return {**line, "skipped": str(error)}
        rows = logits.argmax(1)
        right = per_class_accuracy(rows, images.labels, len(images.class_names))
        probabilities = torch.from_numpy(logits).softmax(1).numpy()
        return line | {
            "accuracy": accuracy(rows, images.labels),
            "calibration_error": round(calibration_error(probabilities, images.labels), 6),
            "per_class": [None if np.isnan(value) else round(float(value), 6) for value in right],
            "predicted": rows.tolist(),
            "predict_seconds": round(time.perf_counter() - start, 4),
            "peak_memory_mb": peak_memory(),
            **({"features": self._keep_features(clf, test)} if self._pictured(clf) else {}),
        }

    def _pictured(self, clf: FewShotClassifier) -> bool:
        """Whether a report can show how images lie: zero-shot's, and those of methods that move them."""
        bench, head = self.bench, clf.head_
        last = (self.draw.shots, self.draw.seed) == (max(bench.shots), bench.seeds[0])
        return last and (head.moves_images or clf.method == "zero-shot")

    def _keep_features(self, clf: FewShotClassifier, test: str) -> str:
        """Write image features of a test set, MOST_FEATURES at most, and give the file's name."""
        images = self.draw.tests[test]
        rows = np.linspace(0, len(images) - 1, min(len(images), MOST_FEATURES)).astype(int)
        data = io.BytesIO()
        np.savez_compressed(data, rows=rows, features=clf.transform(images[rows]).astype(np.float16))
        name = f"features/{id_of(self.facts, test)}-{self.id}.npz"
        (self.bench.out / "features").mkdir(parents=True, exist_ok=True)
        write_atomically(self.bench.out / name, data.getvalue())
        return name

    def keep(self, lines: list[Line]) -> None:
        """Write the lines, and what their test sets are, so that nothing is ever half there."""
        folder = self.bench.out / "tests"
        for test, images in self.draw.tests.items():
            path = folder / f"{id_of(self.facts, test)}.json"
            if not path.exists():
                folder.mkdir(parents=True, exist_ok=True)
                content = {
                    "class_names": images.class_names, "labels": images.labels.tolist(),
                    "items": [str(item) for item in images.items],
                }  # fmt: skip
                write_atomically(path, json.dumps(content).encode())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, as_lines(lines))


def as_lines(lines: list[Line]) -> bytes:
    """Write lines out in ASCII: an error may name a file whose name is no Unicode, or ends a line."""
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def id_of(line: Line, test: str) -> str:
    """Name the file that says what a line's test set is."""
    facts = [line["protocol"], line["data"], line["splits"], test, line["backbone"]["fingerprint"]]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def peak_memory() -> float | None:
    """Megabytes that this process took at most so far; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    unit = 2**20 if platform.system() == "Darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


def run_bench(bench: Bench, jobs: int = 1, progress: bool | None = None) -> list[Line]:
    """Run what is not finished, and give all lines in order; `results.jsonl` holds them.

    Parameters
    ----------
    bench
        What to run.
    jobs
        Processes; each takes an equal share of the threads. Sums then come in another order, which may turn
        an image on the edge for a method that iterates.
    progress
        Whether to show a bar; None shows it on a terminal.
    """
    if check_integer("jobs", jobs, 1) > 1:
        _spread(bench, jobs)
    todo = list(bench.jobs())
    found = {job.id: lines for job in todo if (lines := job.lines(failed=jobs > 1)) is not None}
    with bar("Cells", len(todo), progress) as advance:
        advance(len(found))
        for job in todo:
            if job.id not in found:
                found[job.id] = job.run()
                job.keep(found[job.id])
                advance(1, note=f"{job.facts['data']}, {job.spec}, {job.draw.shots} shots")
    lines = [line for job in todo for line in found[job.id]]
    bench.out.mkdir(parents=True, exist_ok=True)
    write_atomically(bench.out / "results.jsonl", as_lines(lines))
    return lines


def _spread(bench: Bench, jobs: int) -> None:
    """Run the fits in several processes; whatever they leave is done afterwards, in this one."""
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_work, args=(bench, number, jobs)) for number in range(jobs)]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join()
    except KeyboardInterrupt:
        for worker in workers:
            worker.terminate()
        raise


def _work(bench: Bench, number: int, jobs: int) -> None:
    """Run every `jobs`-th fit that is not finished."""
    torch.set_num_threads(max((os.cpu_count() or 1) // jobs, 1))
    for row, job in enumerate(bench.jobs()):
        if row % jobs == number and job.lines() is None:
            job.keep(job.run())


def read_results(folder: Path) -> list[Line]:
    """Read a bench's lines, the finished cells of a run that was killed too."""
    cells = sorted((folder / "cells").glob("*.jsonl"))
    if not cells:
        raise DataError(f"{folder} holds no results. Make some: handful bench ... --out {folder}")
    lines = [json.loads(line) for cell in cells for line in cell.read_bytes().splitlines()]
    rank = {name: number for number, name in enumerate(METHODS)}

    def key(line: Line) -> tuple[Any, ...]:
        own = rank.get(read_spec(line["method"])[0], len(rank))
        return line["protocol"], line["data"], own, line["method"], line["shots"], line["seed"]

    return sorted(lines, key=key)

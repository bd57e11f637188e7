"""The tables of `real_features.py`, in Markdown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from handful.report.tables import published_tables

Rows = list[dict[str, Any]]
TITLES = {
    "auto:selection=fixed": "auto, fixed",
    "linear-probe:selection=support": "linear-probe, support",
    "linear-probe:solver=published": "linear-probe, CLAP as published",
    "linear-probe:solver=published,strength=0": "linear-probe, ZS-LP as published",
    "linear-probe:tolerance=0.0001": "linear-probe, at its minimum",
    "tip-adapter:selection=support": "tip-adapter, support",
    "tip-adapter-f:selection=support": "tip-adapter-f, support",
    "ape:selection=support": "ape, support",
    "cross-modal-probe:solver=convex": "cross-modal-probe, convex",
    "cross-modal-probe": "cross-modal-probe, as published",
    "clip-adapter:selection=fixed,alpha=0.6": "clip-adapter, fixed, alpha 0.6",
    "tda": "tda, with the labelled images",
    "tda:seeded=false": "tda, names alone",
}
ORIENTATION = (
    ("ViT-B/16", "HealthX-Lab/CLIP-SVD, averages collected (protocols vary)", {
        "linear probe": "logistic-probe", "GDA": "gda", "ProKeR": "kernel-ridge",
        "Tip-Adapter": "tip-adapter:selection=support", "Tip-Adapter-F": "tip-adapter-f:selection=support",
        "LP++": "lp-plus-plus", "CLIP-Adapter": "clip-adapter",
    }),
    ("RN50", "CLAP article, averages, no validation tuning", {
        "random-init LP": "logistic-probe", "CLAP": "linear-probe:solver=published",
        "ZS-LP": "linear-probe:solver=published,strength=0", "Tip-Adapter": "tip-adapter",
        "Tip-Adapter-F": "tip-adapter-f", "TaskRes(enh.)": "taskres", "cross-modal LP": "cross-modal-probe",
        "CLIP-Adapter": "clip-adapter:selection=fixed,alpha=0.6",
    }),
    ("RN50", "APE repository, APE_results.ipynb (APE: text of CuPL)", {
        "APE": "ape:selection=support", "APE-T": "ape-t",
    }),
)  # fmt: skip
"""Published averages over the field's eleven data sets (of `handful/data/published.toml`), and our method."""
ZERO = {"APE repository, APE_results.ipynb (APE: text of CuPL)": 58.89}
"""Zero-shot that a table does not print itself: of the same repository family, one template."""


def tables(rows: Rows, methods: Sequence[str]) -> Iterator[str]:
    """Give all tables, line by line."""
    grid = Grid(rows)
    known = [method for method in methods if method in grid.methods]
    if not known:
        yield "No rows."
        return
    yield "### Accuracy in %, mean over data sets\n"
    yield from grid.means(known)
    yield "\n### Points beside `auto` on the same draws\n"
    yield from grid.beside(known, "auto")
    for name in grid.sets:
        yield f"\n### {name}: accuracy in %, and seconds of a fit\n"
        yield from grid.of_set(known, name)
    yield "\n### Probabilities: expected calibration error, and sets at 90 % (coverage / classes in a set)\n"
    yield from grid.probabilities(known)
    yield "\n### Gains over zero-shot, ours / published averages over eleven other data sets\n"
    yield from grid.published()
    if left_out := [row for row in rows if "left_out" in row]:
        said = (
            f"{title(row['method'])} on {row['set']} at {row['shots']} ({row['left_out']})"
            for row in left_out
        )
        yield f"\nLeft out, with more shots of the set: {'; '.join(said)}."


def title(method: str) -> str:
    """Give what a table calls a method."""
    return TITLES.get(method, method)


def line(*cells: str) -> str:
    """Give a line of a table."""
    return f"| {' | '.join(cells)} |"


def head(*cells: str) -> Iterator[str]:
    """Give its head."""
    yield line(*cells)
    yield line(*("---" for _ in cells))


class Grid:
    """Rows by method, data set, shots and draw."""

    def __init__(self, rows: Rows) -> None:
        self.rows: dict[tuple[str, str, int], Rows] = defaultdict(list)
        for row in rows:
            if "accuracy" in row:
                self.rows[row["method"], row["set"], row["shots"]].append(row)
        self.methods = {method for method, _, _ in self.rows}
        self.sets = list(dict.fromkeys(name for _, name, _ in self.rows))
        self.shots = sorted({shots for _, _, shots in self.rows})

    def sets_at(self, shots: int) -> list[str]:
        """Give the data sets that have so many shots."""
        return [name for name in self.sets if any((one, name, shots) in self.rows for one in self.methods)]

    def value(self, method: str, name: str, shots: int, what: str = "accuracy") -> float:
        """Give the mean over draws; NaN where there is none."""
        found = [row[what] for row in self.rows.get((method, name, shots), ()) if what in row]
        return float(np.mean(found)) if found else float("nan")

    def mean(self, method: str, shots: int, what: str = "accuracy") -> float:
        """Give the mean over all data sets of so many shots; NaN where one is missing."""
        return float(np.mean([self.value(method, name, shots, what) for name in self.sets_at(shots)]))

    def means(self, methods: Sequence[str]) -> Iterator[str]:
        """Accuracy by shots, and seconds at 4 shots."""
        columns = [
            f"{shots} shot{'s' * (shots > 1)} ({len(self.sets_at(shots))} sets)" for shots in self.shots
        ]
        yield from head("method", *columns, "seconds at 4")
        for method in methods:
            found = [percent(self.mean(method, shots)) for shots in self.shots]
            yield line(title(method), *found, number(self.mean(method, 4, "cpu")))

    def beside(self, methods: Sequence[str], other: str) -> Iterator[str]:
        """Differences to another method on the same draws, its worst data set and its best."""
        columns = [str(shots) for shots in self.shots]
        yield from head("method", *columns, "worst", "best")
        for method in methods:
            if method == other:
                continue
            cells, places = [], []
            for shots in self.shots:
                gaps = [self.gap(method, other, name, shots) for name in self.sets_at(shots)]
                cells.append(signed(float(np.mean(gaps))))
                places += [
                    (gap, f"{name} {shots}")
                    for gap, name in zip(gaps, self.sets_at(shots), strict=True)
                    if not np.isnan(gap)
                ]
            ends = (
                [f"{signed(gap)} ({where})" for gap, where in (min(places), max(places))]
                if places
                else ["", ""]
            )
            yield line(title(method), *cells, *ends)

    def gap(self, method: str, other: str, name: str, shots: int) -> float:
        """Mean difference over the draws that both have."""
        one, two = (
            {row["draw"]: row["accuracy"] for row in self.rows.get((key, name, shots), ())}
            for key in (method, other)
        )
        return float(np.mean([one[draw] - two[draw] for draw in one if draw in two] or [np.nan]))

    def of_set(self, methods: Sequence[str], name: str) -> Iterator[str]:
        """Accuracy and its spread over draws, and seconds."""
        shots = [one for one in self.shots if name in self.sets_at(one)]
        yield from head("method", *(str(one) for one in shots), "seconds")
        for method in methods:
            if not any((method, name, one) in self.rows for one in shots):
                continue
            cells, seconds = [], []
            for one in shots:
                found = [100 * row["accuracy"] for row in self.rows.get((method, name, one), ())]
                spread = f" ± {np.std(found):.1f}" if len(found) > 1 else ""
                cells.append(f"{np.mean(found):.1f}{spread}" if found else "")
                seconds.append(number(self.value(method, name, one, "cpu")))
            yield line(title(method), *cells, ", ".join(seconds))

    def probabilities(self, methods: Sequence[str]) -> Iterator[str]:
        """Calibration errors and sets, as fitted and after `calibrate`."""
        yield from head(
            "method",
            *(f"error, {one}" for one in self.shots),
            *(f"sets, {one}" for one in self.shots if one > 1),
        )
        for method in methods:
            for calibrated in (False, True):
                found = [self.quality(method, one, calibrated) for one in self.shots]
                if all(np.isnan(one[0]) for one in found):
                    continue
                errors = ["" if np.isnan(one[0]) else f"{one[0]:.3f}" for one in found]
                sets = ["" if np.isnan(one[1]) else f"{one[1]:.3f} / {one[2]:.1f}" for one in found]
                yield line(title(method) + ", calibrated" * calibrated, *errors, *sets[self.shots[0] == 1 :])

    def quality(self, method: str, shots: int, calibrated: bool) -> list[float]:
        """Give the mean over data sets of calibration error, coverage and size."""
        found = []
        for name in self.sets_at(shots):
            rows = [
                row.get("calibrated", {}) if calibrated else row
                for row in self.rows.get((method, name, shots), ())
            ]
            of_set = [[row.get(what, np.nan) for what in ("ece", "coverage", "size")] for row in rows]
            found.append(np.mean(of_set or [[np.nan] * 3], 0))
        return [float(one) for one in np.mean(found, 0)]

    def published(self) -> Iterator[str]:
        """Gains over zero-shot, where one was published: only for orientation, sets and backbones differ."""
        known = {table["source"]: table for table in published_tables()}
        yield from head("method", *(str(shots) for shots in self.shots), "published: backbone, source")
        for backbone, source, pairs in ORIENTATION:
            found = known[source]["methods"]
            zero = found["zero-shot"]["average"][0] if "zero-shot" in found else ZERO[source]
            for name, method in pairs.items():
                if method not in self.methods:
                    continue
                theirs = dict(zip((1, 2, 4, 8, 16), found[name]["average"], strict=True))
                gains = {
                    shots: self.mean(method, shots) - self.mean("zero-shot", shots) for shots in self.shots
                }
                cells = [f"{signed(gain)} / {theirs[shots] - zero:+.1f}" for shots, gain in gains.items()]
                yield line(f"{title(method)} / {name}", *cells, f"{backbone}, {source}")


def percent(share: float) -> str:
    """Give a share in percent; empty where there is none."""
    return "" if np.isnan(share) else f"{100 * share:.1f}"


def signed(share: float) -> str:
    """Give a difference in points."""
    return "" if np.isnan(share) else f"{100 * share:+.1f}"


def number(seconds: float) -> str:
    """Give seconds to two digits."""
    return "" if np.isnan(seconds) else f"{seconds:.2g}" if seconds < 100 else f"{seconds:.0f}"

"""What a bench found, as tables: means and spreads, paired differences, who gains and who is hurt."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handful.bench import Line
from handful.metrics import harmonic_mean, mean_spread

REFERENCES = ("zero-shot", "linear-probe")
SAMPLES = 1000
"""Resamples of the bootstrap."""
MOST = 5
ORACLE = "oracle: hyper-parameters chosen on the test set, so an upper bound that nobody will see again"


@dataclass(frozen=True)
class Group:
    """The lines of one protocol on one data set with one backbone."""

    protocol: str
    data: str
    backbone: str
    lines: list[Line]

    @property
    def title(self) -> str:
        """What it is of."""
        return f"{self.protocol}, {self.data}, {self.backbone}"

    @property
    def tests(self) -> list[str]:
        """Names of the test sets, in order."""
        return list(dict.fromkeys(line["test"] for line in self.lines if line["test"]))

    @property
    def methods(self) -> list[str]:
        """Names of the methods, in order."""
        return list(dict.fromkeys(line["method"] for line in self.lines))

    @property
    def shots(self) -> list[int]:
        """Images per class, sorted."""
        return sorted({line["shots"] for line in self.lines})

    def select(self, method: str, test: str, shots: int) -> list[Line]:
        """Give the scored lines of one cell of a table, by seed."""
        found = [
            line for line in self.lines
            if (line["method"], line["test"], line["shots"]) == (method, test, shots) and "accuracy" in line
        ]  # fmt: skip
        return sorted(found, key=lambda line: line["seed"])

    def mean(self, method: str, test: str, shots: int) -> tuple[float, float] | None:
        """Mean and population spread over draws, in %; None where nothing was scored."""
        found = [100 * line["accuracy"] for line in self.select(method, test, shots)]
        return mean_spread(found) if found else None

    def best(self, test: str) -> str | None:
        """The method with the highest mean at the most shots, but for zero-shot and the oracles."""
        ranked = [
            (found[0], method)
            for method in self.methods
            if method != "zero-shot" and not is_oracle(self.lines, method)
            and (found := self.mean(method, test, self.shots[-1])) is not None
        ]  # fmt: skip
        return max(ranked)[1] if ranked else None


@dataclass(frozen=True)
class Sheet:
    """A table: header, rows of text, and what to know below it."""

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str]

    def markdown(self) -> str:
        """Write it as Markdown."""
        lines = [f"### {self.title}", "", _row(self.header), _row(["---"] * len(self.header))]
        lines += [_row(row) for row in self.rows]
        return "\n".join([*lines, "", *(f"{note}\n" for note in self.notes)])


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def group(lines: Sequence[Line]) -> list[Group]:
    """Sort lines into groups."""

    def key(line: Line) -> tuple[str, str, str]:
        return line["protocol"], line["data"], line["backbone"]["name"]

    return [Group(*of, list(mine)) for of, mine in groupby(sorted(lines, key=key), key)]


def is_oracle(lines: Sequence[Line], method: str) -> bool:
    """Whether a method looked at the test set."""
    return any(line.get("selection") == "oracle" for line in lines if line["method"] == method)


def accuracy_sheet(found: Group) -> Sheet:
    """Accuracy of every method on every test set at every number of shots."""
    cells = [(test, shots) for test in found.tests for shots in found.shots]
    several, many = len(found.tests) > 1, len(found.shots) > 1
    names = [
        " ".join([test] * several + [f"{shots} shot{'s' if shots > 1 else ''}"] * (many or not several))
        for test, shots in cells
    ]
    both = found.protocol == "base-to-new"
    header = [
        "method",
        "selection",
        *names,
        *(["harmonic mean"] if both else []),
        "calibration error",
        "seconds",
    ]
    rows = []
    for method in found.methods:
        mine = [line for line in found.lines if line["method"] == method and "seconds" in line]
        ways = ", ".join(dict.fromkeys(line["selection"] for line in mine))
        values = [found.mean(method, *cell) for cell in cells]
        row = [method, f"**{ways}**" if is_oracle(found.lines, method) else ways, *map(_shown, values)]
        if both:
            pairs = [[found.mean(method, test, shots) for test in ("base", "new")] for shots in found.shots]
            row.append(", ".join(f"{harmonic_mean(b[0], n[0]):.1f}" for b, n in pairs if b and n) or "-")
        errors = [line["calibration_error"] for line in mine if "calibration_error" in line]
        row.append(f"{np.mean(errors):.3f}" if errors else "-")
        row.append(f"{np.median([line['seconds'] for line in mine]):.1f}" if mine else "-")
        rows.append(row)
    rows += [["published: " + name, source, *values] + ["-"] * (len(header) - 2 - len(values))
             for name, source, values in published(found, cells)]  # fmt: skip
    notes = ["Accuracy in %, mean ± population spread over draws; seconds to fit, in the median."]
    if any(is_oracle(found.lines, method) for method in found.methods):
        notes.append(f"**{ORACLE}.**")
    skipped = {line["method"]: line["skipped"] for line in found.lines if "skipped" in line}
    notes += [f"{method} can't: {why}" for method, why in skipped.items()]
    failed = Counter((line["method"], line["error"]) for line in found.lines if "error" in line)
    notes += [f"{method} failed {count} times: {error}" for (method, error), count in failed.items()]
    return Sheet(f"Accuracy: {found.title}", header, rows, notes)


def _shown(value: tuple[float, float] | None) -> str:
    return "-" if value is None else f"{value[0]:.1f} ± {value[1]:.1f}"


@cache
def _published() -> list[dict[str, Any]]:
    table: dict[str, Any] = tomllib.loads(files("handful.data").joinpath("published.toml").read_text())
    return list(table["figures"])


def published(found: Group, cells: Sequence[tuple[str, int]]) -> list[tuple[str, str, list[str]]]:
    """Give published figures of the same protocol, data set and backbone: method, source, a value a cell."""
    rows = []
    for figure in _published():
        if (figure["protocol"], figure["data"]) != (found.protocol, found.data):
            continue
        if found.backbone not in figure["backbones"]:
            continue
        known = figure["values"]
        values = [known.get(f"{test} {shots}", known.get(test)) for test, shots in cells]
        if any(value is not None for value in values):
            shown = ["-" if value is None else f"{value:.1f}" for value in values]
            rows.append((figure["method"], figure["source"], shown))
    return rows


def correctness(lines: Sequence[Line], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Which answers are right, `[draws, N]`."""
    return np.array([np.array(line["predicted"]) == labels for line in lines], dtype=float)


def interval(difference: NDArray[np.float64]) -> tuple[float, float, float]:
    """Mean of `[draws, N]` and its 95 % interval, by resampling draws and images."""
    generator, (draws, count) = np.random.default_rng(0), difference.shape
    means = np.empty(SAMPLES)
    for sample in range(SAMPLES):
        rows = generator.integers(draws, size=draws)
        weights = np.bincount(generator.integers(count, size=count), minlength=count)
        means[sample] = (difference[rows] @ weights).mean() / count
    low, high = np.quantile(means, [0.025, 0.975])
    return float(difference.mean()), float(low), float(high)


def paired_sheet(found: Group, test: str, labels: NDArray[np.int64]) -> Sheet:
    """Differences to zero-shot and to the linear probe, image by image, at the most shots."""
    shots = found.shots[-1]
    references = [name for name in REFERENCES if found.select(name, test, shots)]
    rows = []
    for method in found.methods:
        mine = found.select(method, test, shots)
        row = [method]
        for reference in references:
            other = {line["seed"]: line for line in found.select(reference, test, shots)}
            pairs = [(line, other[line["seed"]]) for line in mine if line["seed"] in other]
            if method == reference or not pairs:
                row.append("-")
                continue
            ours, theirs = (correctness(side, labels) for side in zip(*pairs, strict=True))
            mean, low, high = (100 * value for value in interval(ours - theirs))
            verdict = "" if low > 0 or high < 0 else " (within noise)"
            row.append(f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]{verdict}")
        rows.append(row)
    note = "Points of accuracy, image by image on the same draws; 95 % interval, draws and images resampled."
    title = f"Against the references: {found.title}, {test}, {shots} shots"
    return Sheet(title, ["method", *(f"over {name}" for name in references)], rows, [note])


def class_sheet(found: Group, test: str, names: Sequence[str]) -> Sheet | None:
    """The classes that the best method helps most, and those that it hurts most."""
    best, shots = found.best(test), found.shots[-1]
    if best is None or not found.select("zero-shot", test, shots):
        return None

    def by_class(method: str) -> NDArray[np.float64]:
        lines = found.select(method, test, shots)
        return np.nanmean([np.array(line["per_class"], dtype=float) for line in lines], axis=0)

    before, after = by_class("zero-shot"), by_class(best)
    order = np.argsort(after - before, kind="stable")
    order = order[~np.isnan((after - before)[order])]
    chosen = [*order[::-1][:MOST], *order[:MOST]]
    rows = [
        [
            names[row],
            f"{100 * before[row]:.0f}",
            f"{100 * after[row]:.0f}",
            f"{100 * (after - before)[row]:+.0f}",
        ]
        for row in dict.fromkeys(chosen)
    ]
    hurt = int((after < before).sum())
    note = f"{hurt} of {len(order)} classes are told worse than by zero-shot. In %, mean over draws."
    return Sheet(
        f"Who gains, who is hurt: {best}, {found.title}, {test}, {shots} shots",
        ["class", "zero-shot", best, "change"],
        rows,
        [note],
    )


def confusions(found: Group, test: str, labels: NDArray[np.int64]) -> list[tuple[int, int, int, int]]:
    """The pairs that the best method mistakes most: truth, answer, how often, and an image of them."""
    best = found.best(test)
    lines = found.select(best, test, found.shots[-1]) if best else []
    count: Counter[tuple[int, int]] = Counter()
    where: dict[tuple[int, int], int] = {}
    for line in lines:
        for row, (truth, answer) in enumerate(zip(labels.tolist(), line["predicted"], strict=True)):
            if truth != answer:
                count[truth, answer] += 1
                where.setdefault((truth, answer), row)
    return [(*pair, times, where[pair]) for pair, times in count.most_common(MOST)]

"""What a bench found, as tables: means and spreads, paired differences, who gains and who is hurt."""

from __future__ import annotations

import math
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from handful.analysis.manifold import Manifold
from handful.bench import JOINED, Line
from handful.files import escaped
from handful.metrics import harmonic_mean, mean_spread

T = TypeVar("T")
REFERENCES = ("zero-shot", "linear-probe")
SAMPLES = 1000
"""Resamples of the bootstrap."""
MOST = 5
SUMMARIES = {"base-to-new": "harmonic mean", **dict.fromkeys(JOINED, "mean of targets")}
"""The one number of a protocol."""
ELEVEN = "average of 11 data sets"
"""Of which articles print a mean."""
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
        return escaped(f"{self.protocol}, {self.data}, {self.backbone}")

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

    def summary(self, method: str, shots: int) -> float | None:
        """Give the one number of the protocol, of the means over draws, in %; None where there is none."""
        means = {test: self.mean(method, test, shots) for test in self.tests}
        return summary(self.protocol, self.data, {test: m[0] for test, m in means.items() if m})

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
    """Sort lines into groups; backbones of one name are kept apart by their fingerprints."""
    known: dict[str, set[str]] = {}
    for line in lines:
        known.setdefault(line["backbone"]["name"], set()).add(line["backbone"]["fingerprint"])

    def key(line: Line) -> tuple[str, str, str]:
        name, fingerprint = line["backbone"]["name"], line["backbone"]["fingerprint"]
        label = name if len(known[name]) == 1 else f"{name} {fingerprint[:8]}"
        return line["protocol"], line["data"], label

    found = _by(sorted(lines, key=key), key)
    return [Group(protocol, data, backbone, mine) for (protocol, data, backbone), mine in found]


def selections(lines: Sequence[Line]) -> str:
    """List how hyper-parameters were chosen, each word once."""
    return ", ".join(dict.fromkeys(line["selection"] for line in lines))


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
    known = published(found, cells)
    sums = [SUMMARIES[found.protocol]] if found.protocol in SUMMARIES else []
    most = found.shots[-1]
    seconds = f"seconds, {most} shot{'s' if most > 1 else ''}"
    header = ["method", "selection", *names, *sums, "calibration error", seconds]
    rows = []
    for method in found.methods:
        mine = [line for line in found.lines if line["method"] == method and "seconds" in line]
        values = [_shown(found, method, *cell) for cell in cells]
        chosen = selections(mine)
        row = [method, f"**{chosen}**" if is_oracle(found.lines, method) else chosen, *values]
        if sums:
            numbers = [found.summary(method, shots) for shots in found.shots]
            row.append(", ".join(f"{number:.1f}" for number in numbers if number is not None) or "-")
        errors = [line["calibration_error"] for line in mine if "calibration_error" in line]
        row.append(f"{np.mean(errors):.3f}" if errors else "-")
        slow = [line["seconds"] for line in mine if line["shots"] == most]
        row.append(f"{np.median(slow):.1f}" if slow else "-")
        rows.append(row)
    for name, source, figures in known:
        row = [f"published: {name}", source, *("-" if f is None else f"{f:.1f}" for f in figures)]
        if sums:
            of = {test: f for (test, _), f in zip(cells, figures, strict=True) if f is not None}
            number = summary(found.protocol, found.data, of) if len(found.shots) == 1 else None
            row.append("-" if number is None else f"{number:.1f}")
        rows.append([*row, "-", "-"])
    draws = max((len(found.select(m, *cell)) for m in found.methods for cell in cells), default=0)
    notes = [
        f"Accuracy in %, mean ± population spread over draws ({draws} at most); one draw has no spread. "
        "Seconds to fit, in the median."
    ]
    if any(is_oracle(found.lines, method) for method in found.methods):
        notes.append(f"**{ORACLE}.**")
    skipped = {line["method"]: line["skipped"] for line in found.lines if "skipped" in line}
    notes += [f"{method} can't: {why}" for method, why in skipped.items()]
    failed = Counter((line["method"], line["error"]) for line in found.lines if "error" in line)
    notes += [f"{method} failed {count} times: {error}" for (method, error), count in failed.items()]
    return Sheet(f"Accuracy: {found.title}", header, rows, notes)


def _shown(found: Group, method: str, test: str, shots: int) -> str:
    value = found.mean(method, test, shots)
    if value is None:
        return "-"
    spread = f" ± {value[1]:.1f}" if len(found.select(method, test, shots)) > 1 else ""
    return f"{value[0]:.1f}{spread}"


def summary(protocol: str, source: str, values: Mapping[str, float]) -> float | None:
    """Give the harmonic mean of base and new, or the mean of all test sets but the source's own.

    Of accuracies that are means over draws, not the mean of harmonic means, as Zhou et al. 2022b print them
    (tables 1 to 3). None where the protocol has no such number, or a part of it is missing.
    """
    if protocol == "base-to-new":
        both = [values.get("base"), values.get("new")]
        return None if None in both else harmonic_mean(values["base"], values["new"])
    targets = [value for test, value in values.items() if test != source]
    return sum(targets) / len(targets) if protocol in JOINED and targets else None


def averages(groups: Sequence[Group]) -> list[Group]:
    """Give, for each protocol that ran on several data sets, their unweighted mean as a group of its own.

    A cell is there where every data set has it. Protocols with targets have their mean already.
    """
    found = []
    for (protocol, backbone), alike in _by(groups, lambda g: (g.protocol, g.backbone)):
        if len(alike) < 2 or protocol in JOINED:
            continue
        lines = []
        for key, mine in _by([line for one in alike for line in one.lines if "accuracy" in line], _cell):
            if len({line["data"] for line in mine}) == len(alike):
                mean = {name: float(np.mean([line[name] for line in mine])) for name in MEANS}
                cell = dict(zip(CELL, key, strict=True))
                lines.append({**cell, **mean, "selection": selections(mine)})
        if lines:
            found.append(Group(protocol, f"average of {len(alike)} data sets", backbone, lines))
    return found


CELL = ("method", "test", "shots", "seed")
MEANS = ("accuracy", "calibration_error", "seconds")


def _cell(line: Line) -> tuple[Any, ...]:
    return tuple(line[name] for name in CELL)


def _by(items: Iterable[T], key: Callable[[T], tuple[Any, ...]]) -> list[tuple[tuple[Any, ...], list[T]]]:
    """Sort items into lists by a key, in the order in which keys come."""
    found: dict[tuple[Any, ...], list[T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return list(found.items())


@cache
def published_tables() -> list[dict[str, Any]]:
    """Every published table, as `published.toml` has it."""
    table: dict[str, Any] = tomllib.loads(files("handful.data").joinpath("published.toml").read_text("utf-8"))
    return list(table["tables"])


def published(found: Group, cells: Sequence[tuple[str, int]]) -> list[tuple[str, str, list[float | None]]]:
    """Give published figures of the same protocol, data set and backbone: method, source, a value a cell."""
    data = "average" if found.data == ELEVEN else found.data
    rows = []
    for table in published_tables():
        if table["protocol"] != found.protocol or found.backbone not in table["backbones"]:
            continue
        for method, figures in table["methods"].items():
            known = dict(zip(table["cells"], figures.get(data, []), strict=False))
            values = [known.get(f"{test} {shots}") for test, shots in cells]
            values = [None if value is None or math.isnan(value) else value for value in values]
            if any(value is not None for value in values):
                rows.append((method, table["source"], values))
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
        values = np.array([line["per_class"] for line in lines], dtype=float)
        counted = (~np.isnan(values)).sum(0)
        return np.nansum(values, axis=0) / np.where(counted, counted, np.nan)  # a class may have no image

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
    note = f"{hurt} of {len(order)} classes are classified worse than by zero-shot. In %, mean over draws."
    return Sheet(
        f"Who gains, who is hurt: {best}, {found.title}, {test}, {shots} shots",
        ["class", "zero-shot", best, "change"],
        rows,
        [note],
    )


def manifold_sheet(found: Group, test: str, lying: Mapping[str, Manifold]) -> Sheet:
    """How images of a class lie together, before (zero-shot) and after."""
    rows = [
        [method, f"{one.silhouette:+.3f}", f"{100 * one.neighbours:.1f}"] for method, one in lying.items()
    ]
    note = (
        "Features of test images of one draw, by cosine. Silhouette: 1 where classes lie apart, below 0 "
        "where an image lies nearer to another class. Neighbour accuracy: % of images whose 5 nearest are "
        "most often of their class."
    )
    title = f"How images lie: {found.title}, {test}"
    return Sheet(title, ["method", "silhouette", "neighbour accuracy"], rows, [note])


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

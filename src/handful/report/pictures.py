"""What a bench found, as pictures: each function gives a PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from handful.analysis.manifold import Manifold
from handful.report.tables import SUMMARIES, Group


def _png(figure: Figure) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    return data.getvalue()


def curves(found: Group, test: str, title: str | None = None) -> bytes:
    """Accuracy against shots; zero-shot is a level."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, method in enumerate(found.methods):
        points = {shots: value for shots in found.shots if (value := found.mean(method, test, shots))}
        means = np.array([value[0] for value in points.values()])
        if method == "zero-shot" and len(means):
            axes.axhline(means[0], color="0.4", linestyle="--", label=method)
        elif len(means):
            spread, colour = np.array([value[1] for value in points.values()]), f"C{number % 10}"
            style = "-" if number < 10 else ":"
            axes.plot(list(points), means, marker="o", label=method, color=colour, linestyle=style)
            axes.fill_between(
                list(points), means - spread, means + spread, color=colour, alpha=0.15, linewidth=0
            )
    axes.set_xscale("log", base=2)
    axes.set_xticks(found.shots, [str(shots) for shots in found.shots])
    axes.set(xlabel="images per class", ylabel="test accuracy (%)", title=title or found.title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return _png(figure)


def bars(found: Group) -> bytes:
    """Accuracy on every test set, a group of bars for each method; with the protocol's one number."""
    shots, tests = found.shots[-1], found.tests
    methods = [m for m in found.methods if any(found.mean(m, test, shots) for test in tests)]
    names = [*tests, *([SUMMARIES[found.protocol]] if found.protocol in SUMMARIES else [])]
    figure = Figure(figsize=(max(7, 0.9 * len(methods)), 4.5), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        for column, method in enumerate(methods):
            if name in tests:
                value = found.mean(method, name, shots)
            else:
                value = None if (one := found.summary(method, shots)) is None else (one, 0.0)
            if value:
                label = name if column == 0 else None
                at = column + (number - (len(names) - 1) / 2) * width
                axes.bar(
                    at, value[0], width, yerr=value[1] or None, color=f"C{number}", label=label, capsize=2
                )
    axes.set_xticks(range(len(methods)), methods, rotation=30, ha="right")
    axes.set(ylabel="test accuracy (%)", title=f"{found.title}, {shots} shots")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize="small")
    return _png(figure)


def manifolds(lying: Mapping[str, Manifold], names: Sequence[str]) -> bytes:
    """Images in a plane, a panel for each method, one colour a class."""
    figure = Figure(figsize=(4.2 * len(lying), 4.4), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(lying)))
    for axes, (method, one) in zip(panels, lying.items(), strict=True):
        for number, label in enumerate(np.unique(one.labels)):
            of = one.places[one.labels == label]
            axes.scatter(of[:, 0], of[:, 1], s=9, color=f"C{number}", linewidths=0, label=names[label])
        axes.set(title=f"{method}\nsilhouette {one.silhouette:+.2f}, neighbours {100 * one.neighbours:.0f} %")
        axes.set(xticks=[], yticks=[])
    panels[-1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5), markerscale=2)
    return _png(figure)


def price(found: Group, test: str) -> bytes:
    """Accuracy against seconds to fit, at the most shots."""
    shots = found.shots[-1]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, method in enumerate(found.methods):
        lines, value = found.select(method, test, shots), found.mean(method, test, shots)
        if lines and value:
            seconds = max(float(np.median([line["seconds"] for line in lines])), 1e-3)
            marker, colour = "o" if number < 10 else "s", f"C{number % 10}"
            axes.errorbar(
                seconds, value[0], yerr=value[1], marker=marker, color=colour, capsize=2, label=method,
                linestyle="",
            )  # fmt: skip
    axes.set_xscale("log")
    axes.set(xlabel="seconds to fit", ylabel="test accuracy (%)", title=f"{found.title}, {shots} shots")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return _png(figure)

"""Tables and pictures of what the protocols measured."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from handful.compare import Comparison
from handful.files import write_atomically
from handful.metrics import Cell, mean_spread

Series = dict[str, dict[int, tuple[float, float]]]


def summarize(cells: Sequence[Cell]) -> Series:
    """Mean and population spread over draws, in %, by method and shots."""
    series: Series = {}
    for cell in cells:
        series.setdefault(cell.method, {})[cell.shots] = (0.0, 0.0)
    for method, points in series.items():
        for shots in points:
            points[shots] = mean_spread(
                [100 * c.accuracy for c in cells if (c.method, c.shots) == (method, shots)]
            )
    return series


def accuracy_table(cells: Sequence[Cell], title: str) -> Table:
    """Accuracy by method and shots, with how hyper-parameters were chosen and the slowest fit."""
    table = Table(title=title, caption="accuracy in %, mean ± population spread over draws")
    table.add_column("method", no_wrap=True)
    table.add_column("selection")
    columns = sorted({cell.shots for cell in cells})
    for shots in columns:
        table.add_column(f"{shots} shot{'s' if shots > 1 else ''}", justify="right")
    table.add_column("seconds to fit", justify="right")
    for method, points in summarize(cells).items():
        mine = [cell for cell in cells if cell.method == method]
        ways = ", ".join(dict.fromkeys(cell.selection for cell in mine))
        values = [f"{points[s][0]:.1f} ± {points[s][1]:.1f}" if s in points else "-" for s in columns]
        table.add_row(method, ways, *values, f"{max(cell.seconds for cell in mine):.1f}")
    return table


def comparison_table(found: Comparison) -> Table:
    """Methods inside the images at hand, the best first."""
    table = Table(
        title=f"{found.images} images, {found.classes} classes: {found.repeats} times {found.folds} folds",
        caption="accuracy in % on images left out, ± half of a 95 % interval over images",
    )
    table.add_column("method", no_wrap=True)
    table.add_column("selection")
    for name in ("accuracy", "over zero-shot", "seconds to fit"):
        table.add_column(name, justify="right")
    for one in found.ranks:
        gain = f"{100 * one.gain:+.1f} ± {100 * one.gain_error:.1f}" if one.method != "zero-shot" else ""
        accuracy = f"{100 * one.accuracy:.1f} ± {100 * one.error:.1f}"
        table.add_row(one.method, one.selection, accuracy, gain, f"{one.seconds:.1f}")
    return table


def draw_curves(cells: Sequence[Cell], path: Path, title: str) -> None:
    """Draw accuracy against shots, one line a method, the spread as a band; zero-shot is a level."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for method, points in summarize(cells).items():
        shots = sorted(points)
        means = [points[s][0] for s in shots]
        if method == "zero-shot":
            axes.axhline(means[0], color="0.4", linestyle="--", label=method)
            continue
        (line,) = axes.plot(shots, means, marker="o", label=method)
        low = [points[s][0] - points[s][1] for s in shots]
        high = [points[s][0] + points[s][1] for s in shots]
        axes.fill_between(shots, low, high, alpha=0.2, color=line.get_color(), linewidth=0)
    ticks = sorted({cell.shots for cell in cells})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set(xlabel="images per class", ylabel="test accuracy (%)", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=120)
    write_atomically(path, data.getvalue())

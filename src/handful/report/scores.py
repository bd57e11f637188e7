"""An evaluation as text: accuracy beside zero-shot, classes, what is confused, what else was measured."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.table import Table
from rich.text import Text

from handful.errors import counted
from handful.evaluation import BY_FAMILIARITY, Evaluation, Sets
from handful.metrics import Beside, Interval

MOST_CONFUSED = 5
WORST = 5
TABLE_UP_TO = 20
"""Classes of which each has a line unless that is asked for."""


def score_lines(found: Evaluation) -> Iterator[str]:
    """Say how a classifier did, line by line."""
    least, most = found.counts
    each = f"{least}" if least == most else f"{least} to {most}"
    yield (
        f"{counted(found.images)}, {found.classes} classes, {each} image{'s' * (most != 1)} of each   "
        f"({found.method}, selection: {found.selection})"
    )
    yield _beside("balanced accuracy", found.balanced)
    yield _beside("accuracy         ", found.plain)
    macro = found.macro
    yield (
        f"mean over classes: precision {_percent(macro['precision'])}, recall {_percent(macro['recall'])}, "
        f"F1 {_percent(macro['f1'])}; in brackets 95 % intervals over images"
    )


def rest_lines(found: Evaluation, whole: bool) -> Iterator[str]:
    """Say what comes after the table of classes, or in its place."""
    if not whole:
        worst = sorted(found.class_scores, key=lambda one: one.recall)[:WORST]
        yield "worst classes: " + ", ".join(f"{one.name} {100 * one.recall:.0f} %" for one in worst)
    pairs = found.confusions[:MOST_CONFUSED]
    if pairs:
        shown = ", ".join(f"{one.truth} as {one.predicted} ({one.images})" for one in pairs)
        yield f"most confused: {shown}"
    if found.binary is not None:
        one = found.binary
        auc = "none" if one.auc is None else f"{one.auc:.3f}"
        yield (
            f"positive is {one.positive}: sensitivity {_percent(one.sensitivity)}, specificity "
            f"{_percent(one.specificity)}, AUC {auc}"
        )
    if found.sets is not None:
        yield _sets_line(found.sets)
    if found.unknown is not None:
        yield from _unknown_lines(found)


def _sets_line(one: Sets) -> str:
    where = ", by class" if one.by == "class" else ""
    covered = _percent(one.coverage, one.coverage_interval)
    balanced = _percent(one.balanced_coverage, one.balanced_coverage_interval)
    return (
        f"sets at {_percent(one.stated)}{where}: the class is in {covered}, mean over classes {balanced}; "
        f"{one.size:.2f} classes on average, one in {_percent(one.singletons)}, none in {_percent(one.empty)}"
    )


def _unknown_lines(found: Evaluation) -> Iterator[str]:
    one = found.unknown
    if one is None:
        return
    stated = "" if one.stated is None else f"; stated {_percent(one.stated)}"
    yield (
        f"unknown is {'familiarity' if one.rule == BY_FAMILIARITY else 'a probability'} below "
        f"{one.threshold:.3g}: {_percent(one.false_alarms, one.false_alarms_interval)} of {one.known} images "
        f"of the classes are called unknown (false alarms{stated})"
    )
    if one.unknown:
        auroc = "none" if one.auroc is None else f"{one.auroc:.3f}"
        yield (
            f"of {one.unknown} images of no class {_percent(one.found, one.found_interval)} are called "
            f"unknown; AUROC {auroc}"
        )


def class_table(found: Evaluation) -> Table:
    """Lay out precision, recall and F1 of each class that has images."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("class")
    for name in ("images", "precision %", "recall %", "95 % interval", "F1 %"):
        table.add_column(name, justify="right")
    for one in found.class_scores:
        low, high = one.recall_interval
        table.add_row(
            Text(one.name), str(one.images), f"{100 * one.precision:.1f}", f"{100 * one.recall:.1f}",
            f"{100 * low:.1f} to {100 * high:.1f}", f"{100 * one.f1:.1f}",
        )  # fmt: skip
    return table


def _beside(name: str, one: Beside) -> str:
    low, high = one.gain_interval
    return (
        f"{name} {_percent(one.accuracy, one.accuracy_interval)}, zero-shot "
        f"{_percent(one.other, one.other_interval)}, gain {100 * one.gain:+.2f} points "
        f"({100 * low:+.1f} to {100 * high:+.1f})"
    )


def _percent(share: float | None, of: Interval | None = None) -> str:
    if share is None:
        return "none (no such image)"
    shown = f"{100 * share:.2f} %"
    return shown if of is None else f"{shown} ({100 * of[0]:.1f} to {100 * of[1]:.1f})"

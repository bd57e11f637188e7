"""Tables and pictures of what a bench or a comparison found."""

from __future__ import annotations

import textwrap

from rich import box
from rich.table import Table
from rich.text import Text

from handful.compare import Comparison
from handful.report.tables import Sheet


def sheet_table(sheet: Sheet) -> Table:
    """Lay a sheet out for a terminal; what looked at the test set is red, as on the page."""

    def styled(text: str) -> Text:
        return Text(text.strip("*"), style="bold red" if text.startswith("**") else "")

    table = Table(title=sheet.title, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.caption, table.caption_justify = Text("\n").join(map(styled, sheet.notes)), "left"
    for number, name in enumerate(sheet.header):
        lines = "\n".join(textwrap.wrap(name, 10, break_long_words=False))
        table.add_column(lines, justify="left" if number < 2 else "right", no_wrap=number == 0)
    for method, *cells in sheet.rows:
        table.add_row(method.replace(":", ":\n", 1), *(styled(cell.replace("± ", "±")) for cell in cells))
    return table


def comparison_table(found: Comparison) -> Table:
    """Methods inside the images at hand, the best first."""
    each = f"{found.smallest}" if found.smallest == found.largest else f"{found.smallest} to {found.largest}"
    table = Table(
        title=f"{found.classes} classes of {each} images: {found.repeats} times {found.folds} folds",
        caption="mean over classes of the accuracy on images held out, in %, ± half of a 95 % interval",
    )
    table.add_column("method", no_wrap=True)
    table.add_column("selection")
    uneven = found.smallest != found.largest
    shares = ("balanced accuracy", "accuracy") if uneven else ("balanced accuracy",)
    for name in (*shares, "over zero-shot", "better", "seconds to fit"):
        table.add_column(name, justify="right")
    for one in found.ranks:
        is_zero = one.method == "zero-shot"
        table.add_row(
            one.method,
            one.selection,
            f"{100 * one.balanced_accuracy:.1f} ± {100 * one.error:.1f}",
            *([f"{100 * one.accuracy:.1f}"] if uneven else []),
            "" if is_zero else f"{100 * one.gain:+.1f} ± {100 * one.gain_error:.1f}",
            "" if is_zero else f"{100 * one.better:.0f} %",
            f"{one.seconds:.1f}",
        )
    return table

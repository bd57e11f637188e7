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

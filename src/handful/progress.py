"""One progress bar, on stderr, for whatever takes long."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[..., None]
"""Called with how many are done now, and `note=` to show beside the bar."""


@contextmanager
def bar(text: str, total: int, show: bool | None = None) -> Iterator[Advance]:
    """Give a function that advances a bar; None shows it on a terminal."""
    if not total or not (sys.stderr.isatty() if show is None else show):
        yield lambda count, note="": None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(text),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task("", total=total)

        def advance(count: int, note: str = "") -> None:
            shown.update(task, advance=count, description=note)

        yield advance

"""One progress bar, on stderr, for whatever takes long."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY = 30.0
"""Seconds between lines where there is no terminal: short work says nothing."""
Advance = Callable[..., None]
"""Called with how many are done now, and `note=` to show beside the bar."""


@contextmanager
def bar(text: str, total: int, show: bool | None = None) -> Iterator[Advance]:
    """Give a function that advances a bar; None shows it on a terminal, and elsewhere a line now and then."""
    if not total or show is False:
        yield lambda count, note="": None
        return
    if show is None and not sys.stderr.isatty():
        yield _lines(text, total)
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
    to_terminal = sys.stdout.isatty()  # else results would be written to the terminal of stderr
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=to_terminal) as shown:
        task = shown.add_task("", total=total)

        def advance(count: int, note: str = "") -> None:
            shown.update(task, advance=count, description=note)

        yield advance


def _lines(text: str, total: int) -> Advance:
    """Give a function that writes how far it is, and how long it will take, every so often."""
    start = last = time.monotonic()
    done = before = 0

    def advance(count: int, note: str = "") -> None:
        nonlocal last, done, before
        now = time.monotonic()
        if not done and now - start < 1:
            before = count if count > 1 else 0  # done in an earlier run, and no measure of this one
        done += count
        if done > before and now - last >= EVERY:
            last, left = now, (now - start) * (total - done) / (done - before)
            print(
                f"{text}: {done} of {total}, {note or '...'}, {left:.0f} s left", file=sys.stderr, flush=True
            )

    return advance

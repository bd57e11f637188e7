"""What was found where images were read: what is used, what is left out and why, and what is there twice."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import NoReturn

from handful.data.images import MOST_SHOWN, file_digest
from handful.data.items import is_file
from handful.errors import DataError
from handful.types import ImageLike


@dataclass(frozen=True)
class LeftOut:
    """One file or folder that was not used, and why."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class Report:
    """What went in and what came out: `found == kept + len(left_out)` always."""

    found: int
    kept: int
    left_out: tuple[LeftOut, ...] = ()
    empty_classes: tuple[str, ...] = ()
    same: tuple[tuple[str, str], ...] = ()
    """Two files that are the same to the byte, in different classes."""
    written: tuple[str, ...] = field(default=(), repr=False, compare=False)
    """How the folder or the table writes the classes that are kept, in label order."""
    notes: tuple[str, ...] = field(default=(), compare=False)
    """What is odd about images that can be read, a sentence each; none where they were not looked at."""

    def __post_init__(self) -> None:
        if self.found != self.kept + len(self.left_out):
            raise DataError(
                f"Counted {self.found} files, kept {self.kept} and left out {len(self.left_out)}: "
                "the folder changed while it was read. Read it again."
            )

    def __str__(self) -> str:
        lines = [f"{self.kept} of {self.found} files used, {len(self.left_out)} left out"]
        lines += [f"  {item}" for item in self.left_out[:MOST_SHOWN]]
        if len(self.left_out) > MOST_SHOWN:
            lines.append(f"  and {len(self.left_out) - MOST_SHOWN} more")
        lines += [f"  {name}: a class folder without images" for name in self.empty_classes]
        lines += [
            f"  {one}: the same image as {other}, of another class" for one, other in self.same[:MOST_SHOWN]
        ]
        lines += [f"  {note}" for note in self.notes]
        return "\n".join(lines)


def refuse(report: Report) -> NoReturn:
    """Raise the one error that lists all that can't be used."""
    raise DataError(
        f"Some of the input can't be used. {report}\n"
        'Mend or remove these, or leave them out with on_error="skip" (--on-error skip).'
    )


def find_same(labelled: Iterable[tuple[ImageLike, object]]) -> tuple[tuple[str, str], ...]:
    """Find files that are the same to the byte in different classes, each beside the first of its kind.

    Only files of equal size are compared, by their digests; one that can't be read is the same as none.
    """
    sizes: dict[int, list[tuple[str | PathLike[str], object]]] = {}
    for item, label in labelled:
        if is_file(item):
            with suppress(OSError, ValueError):
                sizes.setdefault(Path(item).stat().st_size, []).append((item, label))
    first: dict[str, tuple[str | PathLike[str], object]] = {}
    found = []
    for group in sizes.values():
        for item, label in group if len(group) > 1 else ():
            with suppress(DataError):
                known, own = first.setdefault(file_digest(item), (item, label))
                if own != label:
                    found.append((str(item), str(known)))
    return tuple(found)

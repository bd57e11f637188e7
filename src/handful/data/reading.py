"""What was found where images were read: what is used, what is left out and why, and what is there twice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from handful.data.images import MOST_SHOWN, file_digest, is_file
from handful.errors import DataError
from handful.types import ImageLike


@dataclass(frozen=True)
class LeftOut:
    """One file or folder that was not used, and why."""

    path: str
    reason: str
    passed: bool = False
    """No fault: it is no image, or it is read elsewhere."""

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}{', passed over' * self.passed}"


@dataclass(frozen=True)
class Report:
    """What went in and what came out: `found == kept + len(left_out)` always.

    Hidden files and what systems leave behind are counted apart, in `passed_over`.
    """

    found: int
    kept: int
    left_out: tuple[LeftOut, ...] = ()
    empty_classes: tuple[str, ...] = ()
    same: tuple[tuple[str, str], ...] = ()
    """Two files that are the same to the byte, in different classes."""
    written: tuple[str, ...] = field(default=(), repr=False, compare=False)
    """How the folder or the table writes the classes that are kept, in label order."""
    passed_over: tuple[str, ...] = ()
    """Hidden files and folders, and leftovers such as `__MACOSX` and `Thumbs.db`."""
    notes: tuple[str, ...] = ()
    """What may have been meant otherwise, a sentence each."""

    def __post_init__(self) -> None:
        if self.found != self.kept + len(self.left_out):
            raise DataError(
                f"Counted {self.found} files, kept {self.kept} and left out {len(self.left_out)}: "
                "the folder changed while it was read. Read it again."
            )

    def __str__(self) -> str:
        lines = [f"{self.kept} of {self.found} files used, {len(self.left_out)} left out"]
        faults_first = sorted(self.left_out, key=lambda item: item.passed)
        lines += [f"  {item}" for item in faults_first[:MOST_SHOWN]]
        if len(self.left_out) > MOST_SHOWN:
            lines.append(f"  and {len(self.left_out) - MOST_SHOWN} more")
        lines += [f"  {name}: a class folder without images" for name in self.empty_classes]
        lines += [
            f"  {one}: the same image as {other}, of another class" for one, other in self.same[:MOST_SHOWN]
        ]
        lines += [f"  {passed_line(self.passed_over)}"] if self.passed_over else []
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])


def passed_line(paths: Sequence[str]) -> str:
    """Count hidden files and leftovers, and say how they are called."""
    names = sorted({repr(Path(path).name)[1:-1] for path in paths})
    shown = ", ".join(names[:MOST_SHOWN]) + (", ..." if len(names) > MOST_SHOWN else "")
    return f"{len(paths)} hidden or left behind by systems and archives, passed over: {shown}"


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
    sizes: dict[int, list[tuple[str | Path, object]]] = {}
    for item, label in labelled:
        if is_file(item):
            with suppress(OSError, ValueError):
                sizes.setdefault(Path(item).stat().st_size, []).append((item, label))
    first: dict[str, tuple[str | Path, object]] = {}
    found = []
    for group in sizes.values():
        for item, label in group if len(group) > 1 else ():
            with suppress(DataError):
                known, own = first.setdefault(file_digest(item), (item, label))
                if own != label:
                    found.append((str(item), str(known)))
    return tuple(found)

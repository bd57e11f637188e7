"""What is odd about images that can be read: a note names them, so that none is lost without a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from handful.data.items import title
from handful.data.pixels import FLAT

MOST_NAMED = 5
"""Images that one note names."""


class Look(NamedTuple):
    """What an image looks like to a program: whether its levels were scaled, and how far they lie apart."""

    deep: bool = False
    """More than 8 bits a channel: `handful.data.pixels.to_bytes` scaled it."""
    spread: int = 255
    """Largest difference of two levels of a channel, of 255."""

    @property
    def is_odd(self) -> bool:
        """Whether this is worth a note."""
        return self.deep or self.spread < FLAT


def notes_on(items: Sequence[object], looks: Mapping[int, Look]) -> tuple[str, ...]:
    """Say of how many images the levels were scaled, and which are nearly of one colour, a sentence each.

    Parameters
    ----------
    items
        All images.
    looks
        By row of these; a row that is missing is nothing to note.
    """
    deep = [row for row, look in looks.items() if look.deep]
    flat = sorted(row for row, look in looks.items() if look.spread < FLAT)
    notes = []
    if deep:
        notes.append(
            f"{len(deep)} of {len(items)} images have more than 8 bits a channel: their levels were scaled "
            "to 256, each image by its own darkest and brightest unless it fills its range."
        )
    if flat:
        notes.append(
            f"{len(flat)} of {len(items)} images are nearly of one colour, all pixels within {FLAT} of 256 "
            f"levels: {_listed(items, flat)}. Look at them: they may have been written or scaled wrongly."
        )
    return tuple(notes)


def note_on_same(items: Sequence[object], groups: Sequence[Sequence[int]]) -> tuple[str, ...]:
    """Say which different files have the same feature, by groups of rows; nothing where there are none."""
    return tuple(
        f"{len(rows)} different images have the same feature, as if they were one: {_listed(items, rows)}. "
        "Look at them: they may have been written or scaled wrongly."
        for rows in groups[:MOST_NAMED]
    )


def _listed(items: Sequence[object], rows: Sequence[int]) -> str:
    more = f" and {len(rows) - MOST_NAMED} more" if len(rows) > MOST_NAMED else ""
    return ", ".join(title(items[row], row) for row in rows[:MOST_NAMED]) + more

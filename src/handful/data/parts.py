"""Folders that are parts of a data set, or hold the class folders, and are no classes themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from handful.data.names import name_key
from handful.data.part_names import (
    COLLECTIONS,
    FOLDS,
    KIND_OF,
    NO_THING,
    OTHERS,
    SELDOM,
    is_plain,
    kind_of,
    kinds_in,
    words_of,
)
from handful.errors import DataError

TABLE = "If these are classes, list the images in a table with the columns path and label."


@dataclass(frozen=True)
class Inside:
    """What one folder of a root holds.

    Attributes
    ----------
    flat
        How many images lie in it directly.
    below
        Its sub-folders that hold images, at any depth; those of the last of `single` where there is one.
    single
        Where these are one, the sub-folders that lead on alone, to where images lie or several folders do.
    """

    flat: int = 0
    below: tuple[str, ...] = ()
    single: tuple[str, ...] = ()

    @classmethod
    def of(cls, places: Sequence[tuple[str, ...]]) -> Inside:
        """Read the places of a folder's images, each as the names of the sub-folders that it lies in."""
        single: tuple[str, ...] = ()
        while len({place[:1] for place in places}) == 1 and places[0]:
            single += places[0][:1]
            places = [place[1:] for place in places]
        below = {place[0] for place in places if place}
        return cls(places.count(()), tuple(sorted(below)), single)

    @property
    def nested(self) -> bool:
        """Whether all of its images lie in sub-folders."""
        return bool(self.single) or (bool(self.below) and not self.flat)

    @property
    def first(self) -> tuple[str, ...]:
        """Its own sub-folders that hold images."""
        return self.single[:1] or self.below


def find_parts(inside: Mapping[str, Inside]) -> list[str]:
    """Find the folders that are parts of a data set, and no classes.

    `train`, `Test_set`, `valImages2017`, `hold-out`: a name made of a part's word and of what may be said of
    it. Since `train`, `test` and `valid` are ordinary words too, a name alone does not decide. They are parts

    1. where two kinds of them lie side by side, whatever else lies there; or names that differ in that word
       alone (`dogs_train`, `dogs_test`), if nothing else does or one holds its images in sub-folders;
    2. where all folders are called by such words, or by words for images in general (`images`, `fold 1`,
       `extra`), and one of them holds its images in sub-folders;
    3. where a folder holds its images in sub-folders, and most of these are called as folders beside it are
       (`cat`, `dog`, `test/cat`, `test/dog`), or they are several and the folders beside it hold theirs
       directly (`train/cat`, `train/dog`, `more`);
    4. where the name can mean nothing else: `validation`, `unlabeled` (without `labeled`), or a collection
       (`test_images`), unless folders beside it are collections of that word too (`bus_images`);
    5. where the name seldom means anything else (`test`, `val`), and two other folders lie beside it or more.

    Else they are classes: `train` beside `bus` and `car`, `test` beside `control`.

    Parameters
    ----------
    inside
        By name, what each folder holds.

    Returns
    -------
    list
        Their names; empty where all are classes.
    """
    kinds = {name: kind for name in inside if (kind := kind_of(name))}
    if len(set(kinds.values())) > 1:
        return list(kinds)
    pairs = _pairs(inside)
    if pairs and (len(pairs) == len(inside) or any(inside[name].nested for name in pairs)):
        return pairs
    general = all(name in kinds or _is_general(name) for name in inside)
    folds = kinds or all(FOLDS & set(words_of(name)) for name in inside)
    if general and folds and len(inside) > 1 and any(one.nested for one in inside.values()):
        return list(inside)
    return [name for name in kinds if _holds_classes(name, inside) or _is_no_thing(name, inside)]


def _pairs(names: Iterable[str]) -> list[str]:
    """Give names that differ in the word for a part alone, as `dogs_train` and `dogs_test`."""
    kinds: dict[tuple[str, ...], dict[str, str]] = {}
    for name in names:
        words = words_of(name)
        own = kinds_in(name)
        if len(own) == 1:
            rest = tuple(word for word in words if word not in KIND_OF and not word.isdigit())
            kinds.setdefault(rest, {})[name] = own[0]
    return [name for alike in kinds.values() if len(set(alike.values())) > 1 for name in alike]


def _is_general(name: str) -> bool:
    """Whether a name says no more than that images lie there, as `images` and `fold 1` do."""
    words = words_of(name)
    return bool(set(words) & (COLLECTIONS | OTHERS)) and all(map(is_plain, words))


def _holds_classes(name: str, inside: Mapping[str, Inside]) -> bool:
    """Whether the sub-folders of one folder are class folders, by what lies beside it."""
    beside = {name_key(other): one for other, one in inside.items() if other != name}
    own = inside[name].first
    same = 2 * sum(name_key(below) in beside for below in own) > len(own)
    flat = len(own) > 1 and bool(beside) and all(not one.nested for one in beside.values())
    return inside[name].nested and (same or flat)


def _is_no_thing(name: str, inside: Mapping[str, Inside]) -> bool:
    """Whether a part's name can't be a class too."""
    words = words_of(name)
    others = {word for other in inside if not kind_of(other) for word in words_of(other)}
    is_mark = "unlabeled" in kind_of(name) and others & {"labeled", "labelled", "mislabeled"}  # of the things
    is_seldom = set(words) & SELDOM and sum(not kind_of(other) for other in inside) > 1
    return bool((set(words) & NO_THING and not is_mark) or set(words) & COLLECTIONS - others or is_seldom)


def check_layout(root: Path, inside: Mapping[str, Inside]) -> None:
    """Refuse folders that are parts of a data set, or that hold the class folders below.

    Raises
    ------
    DataError
        `find_parts` found some, or some in a class folder; or one folder alone holds images, all of them in
        sub-folders. The error says which folder to give.
    """
    if parts := sorted(find_parts(inside)):
        what = "parts of a data set, no classes" if len(parts) > 1 else "a part of a data set, no class"
        found = f"{root} holds {_listed(parts)}: {what}."
        raise DataError(f"{found} {_take(root, inside, parts)} {TABLE}")
    if len(holding := {name: own for name, own in inside.items() if own.flat or own.below}) == 1:
        ((name, own),) = holding.items()
        if own.nested and (not own.flat or kind_of(name) or _is_general(name)):
            _refuse_wrapper(root, name, own)
    for name, own in inside.items():
        if len({kind_of(below) for below in own.below} - {""}) > 1:
            raise DataError(
                f"{root / name} holds {_listed(own.below)}: parts of a data set, inside of a class. Lay the "
                f"images out as {root}/<part>/<class name>/<image>, and give one part. {TABLE}"
            )


def _take(root: Path, inside: Mapping[str, Inside], parts: Sequence[str]) -> str:
    """Say how to take one of some parts."""
    first = min(parts, key=lambda name: (not inside[name].nested, "train" not in kinds_in(name), name))
    if classes := sorted(set(inside) - set(parts)):
        beside = f"Move {_listed(parts)} out of {root}, where {_listed(classes)} lie too"
        alone = f"; or give one alone, as `handful fit {_quoted(root / first)}`"
        return beside + (alone if inside[first].nested else "") + "."
    take = f"Give one of them, as `handful fit {_quoted(root / first)}`."
    if not inside[first].nested:
        take += f" In it the images are to lie as {root / first}/<class name>/<image>."
    return take


def _refuse_wrapper(root: Path, name: str, own: Inside) -> None:
    """Refuse a folder whose class folders lie deeper, and say where."""
    place = Path(root, name, *own.single)
    if own.flat:  # one class alone, in a part
        place, below = place.parent, own.single[-1:]
    else:
        below = own.below
    parts = [part for part in below if kind_of(part)]
    if len({kind_of(part) for part in parts}) > 1:
        place /= min(parts, key=lambda part: (kind_of(part) != "train", part))
    raise DataError(
        f"{root} holds images in one folder alone, {name}, and there in sub-folders: {_listed(below)}. Give "
        f"the folder of the class folders, as `handful fit {_quoted(place)}`. If {name} is a class, put its "
        "images into it."
    )


def notes_on(inside: Mapping[str, Inside]) -> list[str]:
    """Say which classes may have been meant otherwise."""
    notes = [
        f"{name} is read as a class. If it is a part of a data set, give the folder of one part alone."
        for name in inside
        if kind_of(name)
    ]
    same = next(iter(inside.values())).below
    alike = all(own.nested and own.below == same for own in inside.values())
    if alike and len(inside) > 1 and len(same) > 1:
        notes.append(
            f"every class holds the same sub-folders, {_listed(same)}. If these are the classes, or parts of "
            "a data set, give a folder that holds the classes of one part."
        )
    return notes


def _quoted(path: Path) -> str:
    return f'"{path}"' if " " in str(path) else str(path)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")

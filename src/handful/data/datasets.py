"""Data sets by name or by path, with their splits: the catalogue's, or the user's own."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from handful.data.catalog import Entry, entries
from handful.data.folders import IMAGE_ENDINGS
from handful.data.part_names import part_of
from handful.data.reading import LeftOut, Report, refuse
from handful.data.sets import ImageSet
from handful.data.splits import read_split_zhou
from handful.data.tables import read_table
from handful.errors import DataError, unexpected

PARTS = ("train", "val", "test")
SHOWN = 6


@dataclass(frozen=True)
class Dataset:
    """A data set with its splits.

    Attributes
    ----------
    name
        The catalogue's, or the folder's or file's.
    parts
        `"test"`, and `"train"` and `"val"` where there are such.
    templates
        That its class names are put into.
    split
        A hash over all items' places and labels: which split this is.
    """

    name: str
    parts: dict[str, ImageSet]
    templates: str
    split: str

    def part(self, name: str) -> ImageSet:
        """Give a part, or say which there are."""
        if name not in self.parts:
            raise DataError(f"{self.name} has no {name} part, only {sorted(self.parts)}.")
        return self.parts[name]


def open_dataset(name: str | Path, root: str | Path | None = None) -> Dataset:
    """Open a data set with its splits; nothing is downloaded.

    Parameters
    ----------
    name
        A name in the catalogue, with `root`; or a path: a folder with `train`, `val` and `test`, each of
        class folders, or a table with `path`, `label` and `split`; parts may have any usual name (`training`,
        `Test_set`, `eval`). A set to learn on needs no `test` where others are tested, and those need no
        `train`. A folder that is laid out as a set of the catalogue is read as that.
    root
        Where the catalogue's sets lie, each in its folder.

    Raises
    ------
    DataError
        It is not there, or not whole: what was found of it, and what to put where.
    """
    known = entries()
    if str(name) in known and root is not None:
        return _open_known(known[str(name)], Path(root) / known[str(name)].folder)
    path = Path(name)
    if not path.exists():
        raise unexpected(
            "data", str(name), f"a folder, a table, or with a root one of {sorted(known)}",
            "Say where the catalogue's sets lie." if str(name) in known else "",
        )  # fmt: skip
    if path.is_file():
        return _open_table(path)
    for entry in known.values():
        if entry.split and (path / entry.split).is_file():
            return _open_known(entry, path)
    parts = _find_parts(path)
    if not {"train", "test"} & set(parts):
        found = sorted(child.name for child in path.iterdir())[:SHOWN]
        raise DataError(
            f"Got data={str(path)!r}, expected a folder with `train`, `test` or both, each of class folders. "
            f"It holds {found}."
        )
    sets = {part: ImageSet.from_folder(folder, verify=False) for part, folder in parts.items()}
    return _whole(path.absolute().name, sets, "default", path)


def _whole(name: str, parts: dict[str, ImageSet], templates: str, root: Path) -> Dataset:
    """Give the parts one order of classes, that of train where there is one, and hash the split."""
    names = parts["train" if "train" in parts else "test"].class_names
    hasher = hashlib.sha256(repr(names).encode())
    for part, images in sorted(parts.items()):
        missing = sorted(set(images.class_names) - set(names))
        if missing:
            raise DataError(f"{name}: {part} has classes that train has not: {missing[:SHOWN]}.")
        rows = np.array([names.index(own) for own in images.class_names], dtype=int)
        parts[part] = ImageSet(images.items, rows[images.labels], names)
        for item, label in zip(images.items, parts[part].labels, strict=True):
            place = Path(str(item))
            inside = place.relative_to(root) if place.is_relative_to(root) else place
            hasher.update(f"{part} {inside.as_posix()} {label}\n".encode())
    return Dataset(name, parts, templates, hasher.hexdigest())


def _find_parts(path: Path) -> dict[str, Path]:
    """Find the folders of train, val and test, by these names or by others that are usual.

    Raises
    ------
    DataError
        Two folders may be one part.
    """
    every = [child for child in sorted(path.iterdir()) if child.is_dir()]
    found: dict[str, Path] = {}
    for part in PARTS:
        own = [child for child in every if child.name == part]
        own = own or [child for child in every if part_of(child.name) == part]
        if len(own) > 1:
            raise DataError(
                f"Got data={str(path)!r}, where {' and '.join(child.name for child in own)} may both be the "
                f"{part} part. Call the one to take `{part}`."
            )
        if own:
            found[part] = own[0]
    return found


def _open_table(path: Path) -> Dataset:
    """Read a table with a column `split`."""
    table = read_table(path, ("path", "label", "split"))
    rows = table.rows
    if table.missing:
        gone = tuple(LeftOut(str(rows[row][0]), reason) for row, reason in table.missing.items())
        refuse(Report(len(rows), len(rows) - len(gone), gone))
    sets = {}
    for part in PARTS:
        mine = [(item, label) for item, label, split in rows if split == part or part_of(split) == part]
        if mine:
            sets[part] = ImageSet.from_lists([item for item, _ in mine], [label for _, label in mine])
    if not {"train", "test"} & set(sets):
        found = sorted({split for _, _, split in rows})[:SHOWN]
        raise DataError(f"{path}: expected rows whose split is train or test, found {found}.")
    return _whole(path.stem, sets, "default", path.parent)


def _open_known(entry: Entry, folder: Path) -> Dataset:
    """Read a set of the catalogue, or say what is missing and what was found."""
    try:
        sets = READERS[entry.kind](entry, folder)
    except (DataError, OSError) as error:
        found = sorted(child.name for child in folder.iterdir())[:SHOWN] if folder.is_dir() else "nothing"
        raise DataError(
            f"{entry.title} is not whole in {folder} (found there: {found}): {error} Expected "
            f"{entry.layout}. Where it comes from: {entry.upstream}."
        ) from error
    items = [Path(str(item)) for images in sets.values() for item in images.items]
    missing = [item for item in items if not item.is_file()]
    if missing:
        raise DataError(
            f"{entry.title} is not whole in {folder}: {len(items) - len(missing)} of {len(items)} images "
            f"found, missing {[str(item.relative_to(folder)) for item in missing[:3]]}. Expected "
            f"{entry.layout}. Where it comes from: {entry.upstream}."
        )
    return _whole(entry.name, sets, entry.templates, folder)


def _zhou(entry: Entry, folder: Path) -> dict[str, ImageSet]:
    return read_split_zhou(folder / entry.split, folder / entry.images)


def _fgvc(entry: Entry, folder: Path) -> dict[str, ImageSet]:
    """Read the official lists: a line is an image's number and its variant."""
    names = [line.strip() for line in (folder / "variants.txt").read_text().splitlines() if line.strip()]
    sets = {}
    for part in PARTS:
        lines = (folder / f"images_variant_{part}.txt").read_text().splitlines()
        rows = [line.strip().split(" ", 1) for line in lines if line.strip()]
        items = [folder / entry.images / f"{number}.jpg" for number, _ in rows]
        sets[part] = ImageSet.from_lists(items, [name for _, name in rows], names)
    return sets


def _imagenet(entry: Entry, folder: Path) -> dict[str, ImageSet]:
    """Read `images/train` and `images/val`, folders sorted; val is the test set, as in the field."""
    names = read_classnames(folder / "classnames.txt")
    parts = {"train": "train", "test": "val"}
    return {part: _wnids(folder / entry.images / own, names) for part, own in parts.items()}


def _variant(entry: Entry, folder: Path) -> dict[str, ImageSet]:
    """Read a test set whose folders are wnids, or numbers of lines of classnames.txt (V2)."""
    names = read_classnames(folder / "classnames.txt")
    root = folder / entry.images
    if all(child.name.isdecimal() for child in root.iterdir() if child.is_dir()):
        names = {str(number): name for number, name in enumerate(names.values())}
    return {"test": _wnids(root, names)}


def _wnids(root: Path, names: dict[str, str]) -> ImageSet:
    """Read folders that are named by wnid; classes in the order of `names`, those that are there."""
    present = [wnid for wnid in names if (root / wnid).is_dir()]
    if not present:
        raise DataError(f"{root} holds none of the folders that classnames.txt names.")
    pairs = [
        (path, names[wnid])
        for wnid in present
        for path in sorted((root / wnid).iterdir())
        if path.suffix.lower() in IMAGE_ENDINGS and not path.name.startswith(".")
    ]
    return ImageSet.from_lists(
        [path for path, _ in pairs], [name for _, name in pairs], [names[wnid] for wnid in present]
    )


def read_classnames(file: Path) -> dict[str, str]:
    """Read `classnames.txt`: wnid, then the name; a name that was there before gets a number."""
    lines = [line.strip().split(" ", 1) for line in file.read_text().splitlines() if line.strip()]
    return dict(zip((wnid for wnid, _ in lines), _told_apart(name for _, name in lines), strict=True))


def _told_apart(names: Iterable[str]) -> list[str]:
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found


READERS: dict[str, Callable[[Entry, Path], dict[str, ImageSet]]] = {
    "zhou": _zhou,
    "fgvc": _fgvc,
    "imagenet": _imagenet,
    "imagenet-variant": _variant,
}

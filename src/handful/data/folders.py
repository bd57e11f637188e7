"""Folders as people lay them: which files are images, which are passed over, and where links lead."""

# What os.path asks never raises; pathlib's does for names that are too long, and where nobody may look.
# ruff: noqa: PTH110, PTH112, PTH113, PTH114

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from handful.data.parts import Inside, check_layout, notes_on
from handful.data.reading import LeftOut, passed_line
from handful.errors import DataError

IMAGE_ENDINGS = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif",
    ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".avif",
}  # fmt: skip
"""How the names of images end that can be read."""
OTHER_IMAGES = {
    ".heic", ".heif", ".hif", ".jp2", ".j2k", ".jxl", ".svg", ".tga", ".dcm", ".dng", ".cr2", ".cr3", ".nef",
    ".arw", ".orf", ".raf", ".rw2",
}  # fmt: skip
"""How the names of images end that can't be read: they are an error, and are not passed over."""
FIRST_BYTES = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|BM.{4}\0{4}|RIFF.{4}WEBP|II[*+]\0|MM\0[*+]|P[1-6]\s+[#\d]"
    rb"|.{4}ftyp(avi[fs]|hei[cxms]|hev[cx]|mi[fa]1)",
    re.DOTALL,
)
"""What files of the formats begin with that are read, and those of HEIC."""
LEFTOVERS = {
    "__macosx", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r", "picasa.ini",
    "@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "$recycle.bin", "recycler",
    "system volume information", "lost+found", "found.000", "network trash folder", "temporary items",
    "__pycache__",
}  # fmt: skip
"""What systems, archives and file servers leave behind, in small letters."""
NO_IMAGE = "not an image by its name or its first bytes"
ABOVE = "a link to a folder that it lies in"


@dataclass
class Found:
    """What lies in a folder, at any depth.

    Attributes
    ----------
    images
        Files to be read, sorted.
    bad
        What may have been an image, or a folder of them, and can't be read.
    passed
        Files that are no images, and links to folders that are read already.
    leftovers
        Hidden files and folders, and what systems leave behind; nobody looks into these folders.
    """

    images: list[Path] = field(default_factory=list)
    bad: list[LeftOut] = field(default_factory=list)
    passed: list[LeftOut] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)

    def add(self, path: Path) -> None:
        """Sort in what is no folder: by its name, and where that says nothing by its first bytes."""
        named = path.suffix.lower() in IMAGE_ENDINGS | OTHER_IMAGES
        is_file = os.path.isfile(path)
        if is_file and (named or looks_like_image(path)):
            self.images.append(path)
        elif not is_file and os.path.islink(path) and not os.path.exists(path):
            self.bad.append(LeftOut(str(path), "a link to nothing"))
        elif named:
            self.bad.append(LeftOut(str(path), "no file but a pipe, a socket or a device"))
        else:
            self.passed.append(LeftOut(str(path), NO_IMAGE, True))

    def __str__(self) -> str:
        """Say what is passed over, a line each, for people; empty where nothing is."""
        lines = [str(item) for item in self.passed[:6]]
        lines += [f"and {len(self.passed) - 6} more"] if len(self.passed) > 6 else []
        return "\n".join(lines + ([passed_line(self.leftovers)] if self.leftovers else []))


def is_leftover(name: str) -> bool:
    """Whether a file or folder of this name is one that systems and archives leave behind."""
    return name.lower() in LEFTOVERS or name.startswith(("._", ".DS_Store"))


def is_passed_over(name: str) -> bool:
    """Whether a file or folder is never looked at unless it is named by itself: hidden, or a leftover."""
    return name.startswith(".") or is_leftover(name)


def looks_like_image(path: Path) -> bool:
    """Whether a file begins as an image does; one that can't be opened may be one."""
    try:
        with path.open("rb") as file:
            return FIRST_BYTES.match(file.read(32)) is not None
    except OSError:
        return True


def find_images(root: Path, folders: Sequence[Path]) -> list[Found]:
    """Find the images in folders under a root, at any depth.

    Links to folders are followed. Each real folder is read once, for the folder that it lies in, and only
    then for the first that has a link to it. A link to a folder above is not followed.

    Parameters
    ----------
    root
        Where the search starts.
    folders
        The root itself, or folders in it.

    Returns
    -------
    list
        What was found in each.
    """
    found = [Found() for _ in folders]
    read: dict[str, tuple[int, Path]] = {}
    home = os.path.realpath(root)
    above = {str(path) for path in Path(home).parents} | (set() if root in folders else {home})
    linked = [path != root and os.path.islink(path) for path in folders]
    starts = deque(sorted(enumerate(folders), key=lambda start: linked[start[0]]))  # real folders first
    while starts:
        row, start = starts.popleft()
        inside = [start]
        while inside:
            here = inside.pop()
            real = os.path.realpath(here)
            if real in above:
                found[row].passed.append(LeftOut(str(here), ABOVE, True))
            elif real in read:
                owner, first = read[real]
                same = f"the same folder as {first}{', of another class' * (owner != row)}"
                found[row].passed.append(LeftOut(str(here), same, True))
            else:
                read[real] = (row, here)
                folders_in, links = _look(here, found[row])
                inside += folders_in
                starts.extend((row, link) for link in links)
    for one in found:
        one.images.sort()
        one.bad.sort(key=str)
        one.passed.sort(key=str)
        one.leftovers.sort()
    return found


def _look(folder: Path, found: Found) -> tuple[list[Path], list[Path]]:
    """Sort in what lies in one folder; give the folders in it, and the links to folders."""
    folders: list[Path] = []
    links: list[Path] = []
    try:
        inside = sorted(folder.iterdir())
    except OSError as error:
        found.bad.append(LeftOut(str(folder), f"a folder that can't be opened ({error.strerror})"))
        return folders, links
    for path in inside:
        if is_passed_over(path.name):
            found.leftovers.append(str(path))
        elif os.path.isdir(path):
            (links if os.path.islink(path) else folders).append(path)
        else:
            found.add(path)
    return folders, links


def list_images(paths: Iterable[Path]) -> tuple[list[Path], Found]:
    """List the files to classify: those named by themselves, whatever they are, and those in folders.

    Parameters
    ----------
    paths
        Files, and folders of any depth, of which `find_images` says what is passed over.

    Returns
    -------
    tuple
        The files in the order of `paths`, in a folder sorted, those that can't be read among them; and what
        was passed over in the folders.

    Raises
    ------
    DataError
        There is no file.
    """
    files, rest, given = list[Path](), Found(), list(paths)
    for path in given:
        if not os.path.isdir(path):
            files.append(path)
            continue
        found = find_images(path, [path])[0]
        files += sorted(found.images + [Path(item.path) for item in found.bad])
        rest.passed += found.passed
        rest.leftovers += found.leftovers
    if not files:
        shown = ", ".join(map(str, given)) or "nothing"
        raise DataError(
            f"Got {shown}, where no image is, expected files or folders that hold some. {rest}".rstrip()
        )
    return files, rest


@dataclass
class Listing(Found):
    """What lies in class folders.

    Attributes
    ----------
    labelled
        Each image with the name of its folder.
    names, empty
        The class folders that hold files to be read, and those that hold none.
    notes
        Which classes may have been meant otherwise.
    """

    labelled: list[tuple[Path, str]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def list_classes(root: Path) -> Listing:
    """List the images in a folder of class folders.

    Raises
    ------
    DataError
        There are no class folders, or they are no classes, as `check_layout` says.
    """
    if not os.path.isdir(root):
        what = "which is a file" if os.path.exists(root) else "which is not there"
        raise DataError(f"Got folder={str(root)!r}, {what}; expected a folder of class folders.")
    listing = Listing()
    classes, links = _look(root, listing)
    loose = [LeftOut(str(path), "lies beside the class folders, in none of them") for path in listing.images]
    listing.images, listing.bad = [], listing.bad + loose
    inside: dict[str, Inside] = {}
    every = sorted(classes + links)
    for path, found in zip(every, find_images(root, every), strict=True):
        listing.bad += found.bad
        listing.passed += found.passed
        listing.leftovers += found.leftovers
        if LeftOut(str(path), ABOVE, True) in found.passed:
            continue
        listing.labelled += [(image, path.name) for image in found.images]
        (listing.names if found.images or found.bad else listing.empty).append(path.name)
        inside[path.name] = Inside.of([image.relative_to(path).parts[:-1] for image in found.images])
    if not inside:
        raise DataError(f"{root} holds no class folders. Lay the images out as {root}/<class name>/<image>.")
    check_layout(root, inside)
    listing.notes = notes_on(inside)
    return listing

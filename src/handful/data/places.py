"""Where the paths in a table lead: from its folder or the working folder, as any system writes them."""

# What os.path asks never raises; pathlib's does for names that are too long, and where nobody may look.
# ruff: noqa: PTH112, PTH113

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")


class Places:
    """Find files by the paths that a table writes.

    A path is tried as it is written, from the table's folder and then from the working folder; with `/` for
    `\\`; with `~` for the home folder; as the path of a `file://` address; and with accents as one character
    or as two. The first that is a file is taken.
    """

    def __init__(self, table: Path) -> None:
        self.folder = self.working = table.parent
        with suppress(OSError):  # the working folder was removed
            self.working = Path.cwd()

    def find(self, text: str) -> tuple[Path, str]:
        """Give the file that a path leads to; or where it should be, and why it is none."""
        for path in _spellings(text):
            for start in (self.folder, self.working):
                if os.path.isfile(start / path):
                    return start / path, ""
        place = self.folder / text
        if os.path.isdir(place):
            return place, "a folder, expected a file"
        there = os.path.lexists(place)  # what is wrong with it is found when it is read
        return place, "" if there else self._why_missing(text)

    def _why_missing(self, text: str) -> str:
        """Say what was tried."""
        is_file = text.casefold().startswith("file:")
        if SCHEME.match(text) and not is_file:
            return f"{text} is an address, expected a file: download it first"
        if any(map(_is_absolute, _spellings(text))):
            tried = ["the path as it is written"]
        else:
            tried = [
                f"from the table's folder {self.folder.absolute()}",
                f"from the working folder {self.working}",
            ]
        tried += ["with / for \\"] if "\\" in text else []
        tried += [f"as the address of {unquote(_from_address(text))}"] if is_file else []
        tried += ["with ~ as the home folder"] if text.startswith("~") else []
        return f"no such file; tried {', '.join(tried)}"


def _spellings(text: str) -> Iterator[str]:
    """Give the ways to read a path, the likeliest first, each once."""
    seen = {""}
    address = _from_address(text)
    for first in (text, unquote(address), address):
        for path in (first, _at_home(first)):
            for slashed in (path, path.replace("\\", "/")):
                for form in (slashed, *(unicodedata.normalize(form, slashed) for form in ("NFC", "NFD"))):
                    if form not in seen and "\0" not in form:
                        seen.add(form)
                        yield form


def _at_home(text: str) -> str:
    try:
        return str(Path(text).expanduser()) if text.startswith("~") else text
    except RuntimeError:  # nobody's home
        return text


def _from_address(text: str) -> str:
    """Give the path of a `file:` address, as it is encoded; empty for any other text."""
    if not text.casefold().startswith("file:"):
        return ""
    path = text[5:].replace("\\", "/")
    if path.startswith("//"):
        host, slash, rest = path[2:].partition("/")
        path = slash + rest if host in ("", "localhost", "127.0.0.1") else host + slash + rest
    return path[1:] if re.match(r"/[a-zA-Z]:/", path) else path  # file:///C:/images


def _is_absolute(path: str) -> bool:
    return path.startswith(("/", "\\")) or re.match(r"[a-zA-Z]:[\\/]", path) is not None

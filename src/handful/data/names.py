"""Class names in any script: how they are written, compared, and which are refused."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable

from handful.errors import DataError
from handful.files import readable_name

LONGEST_NAME = 1000
"""Characters of a class name; a text tower reads far fewer."""
UNDECODABLE = "\ufffd"
"""What decoders put in the place of bytes that they can't read."""


def clean_name(name: str) -> str:
    """Turn a folder or file name into words.

    Underscores are spaces, as in the published prompts, and letters are in Unicode's normal form C: an é of
    one character and one of two (macOS writes file names so) are one name. All else stays, joiners, variation
    selectors and soft hyphens among it: scripts and emoji sequences need them.
    """
    return unicodedata.normalize("NFC", _spaced(name))


def name_key(name: str) -> str:
    """Give what names of one class have in common: capitals and how accents are encoded don't count."""
    return unicodedata.normalize("NFC", clean_name(name).casefold())


def check_names(names: Iterable[str], normalise: bool = True) -> tuple[str, ...]:
    """Refuse lists of class names that can't make a classifier, and write the others as `clean_name` does.

    Parameters
    ----------
    names
        In label order.
    normalise
        Whether to give normal form C. Not for the names of a saved classifier: older versions kept the form
        that they were given, and what was learned belongs to it.

    Raises
    ------
    DataError
        A name is empty, longer than `LONGEST_NAME`, or there twice, or holds a control character or bytes
        that are no text.
    """
    given = None if isinstance(names, str) or not isinstance(names, Iterable) else list(names)
    if given is None or not all(isinstance(name, str) for name in given):
        raise DataError(f"Got class_names={names!r}, expected a list of texts.")
    if not given:
        raise DataError("Got no class names, expected at least one.")
    words = tuple(clean_name(name) if normalise else _spaced(name) for name in given)
    for place, (name, word) in enumerate(zip(given, words, strict=True)):
        _check_name(name, word, place)
    keys = [name_key(word) if normalise else word.casefold() for word in words]
    count = Counter(keys)
    twice = sorted({word for word, key in zip(words, keys, strict=True) if count[key] > 1})
    if twice:
        raise DataError(f"Got duplicate class names {twice[:5]}. Rename them so that each is one class.")
    return words


def number_same(names: Iterable[str]) -> tuple[list[str], tuple[str, ...]]:
    """Number the second and further of names that are one name, and say so: "crane", "crane (2)".

    For classes that are told apart by something else. What is no list of texts is left for `check_names`.
    """
    given = list(names)
    if isinstance(names, str) or not all(isinstance(name, str) for name in given):
        return given, ()
    keys = [name_key(name) for name in given]
    taken, seen, renamed = set(keys), Counter[str](), list[str]()
    for row, (name, key) in enumerate(zip(given, keys, strict=True)):
        seen[key] += 1
        number = seen[key]
        while number > 1 and name_key(f"{name} ({number})") in taken:
            number += 1
        if number > 1:
            given[row] = f"{name} ({number})"
            taken.add(name_key(given[row]))
            renamed.append(f"{given[row]!r} is row {row}")
    if not renamed:
        return given, ()
    more = f" and {len(renamed) - 5} more" if len(renamed) > 5 else ""
    return given, (f"Class names that came twice were numbered: {', '.join(renamed[:5])}{more}.",)


def _spaced(name: str) -> str:
    return " ".join(readable_name(name).replace("_", " ").split())


def _check_name(name: str, word: str, place: int) -> None:
    """Refuse one name, shown as it is written on disk, with what can't be seen escaped."""
    shown = repr(name if len(name) <= 60 else name[:60] + "...")
    written = readable_name(name).strip() + word  # a line break inside is no space
    if any(unicodedata.category(letter) in ("Cc", "Cs") or letter == UNDECODABLE for letter in written):
        raise DataError(
            f"Got the class name {shown}, which holds a control character or bytes that are no text (UTF-8). "
            "Rename its folder, or mend its label."
        )
    if all(unicodedata.category(letter) == "Cf" for letter in word):
        raise DataError(
            f"Got an empty class name, {shown}, at position {place}, expected a word. Rename its folder, or "
            "mend its label."
        )
    if len(word) > LONGEST_NAME:
        raise DataError(
            f"Got a class name of {len(word)} characters, {word[:60]!r}..., expected at most {LONGEST_NAME}. "
            "Shorten it."
        )

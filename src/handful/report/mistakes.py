"""What was classified wrongly, as files: JSON, CSV, and a contact sheet of the images."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from handful.data import decode
from handful.errors import DataError, unexpected
from handful.evaluation import Evaluation, Mistake
from handful.files import write_atomically

MOST = 60
"""Images on a contact sheet."""
COLUMNS, SIDE, GAP, LINE, SIZE, ASCENT = 6, 168, 10, 17, 13, 13
"""Of the sheet: images beside each other; and in pixels, an image's side, what is between two, the height of
a line of text, of its letters, and of these above the line they stand on."""
SUFFIXES = (".json", ".csv", ".png")


def check_target(path: Path) -> None:
    """Refuse a file that `write_mistakes` could not write, by its name."""
    if path.suffix.lower() not in SUFFIXES:
        raise unexpected("--errors", str(path), "a file that ends in .json, .csv or .png (a contact sheet)")


def write_mistakes(found: Evaluation, path: str | Path) -> Path:
    """Write what an evaluation found wrong, the surest first, in the form that the file's name ends in.

    Parameters
    ----------
    found
        An evaluation.
    path
        `.json`: a list of objects; `.csv`: the same as a table; `.png`: a contact sheet of the first `MOST`.

    Raises
    ------
    ParameterError
        The name ends in something else.
    DataError
        The file can't be written.
    """
    path = Path(path)
    check_target(path)
    form = path.suffix.lower()
    if form == ".json":
        text = json.dumps([asdict(one) for one in found.errors], indent=1, ensure_ascii=False) + "\n"
        data = text.encode(errors="backslashreplace")  # JSON's own escapes, of names that are no Unicode
    elif form == ".csv":
        data = _table(found.errors).encode(errors="backslashreplace")
    else:
        data = contact_sheet(found.errors, found.images)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    except OSError as error:
        raise DataError(f"Can't write {path}: {error.strerror or error}. Give another --errors.") from error
    return path


def _table(errors: Sequence[Mistake]) -> str:
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow([field.name for field in fields(Mistake)])
    table.writerows(asdict(one).values() for one in errors)
    return text.getvalue()


def contact_sheet(errors: Sequence[Mistake], images: int) -> bytes:
    """Draw the first `MOST` images that were classified wrongly, each over its class and what it was called.

    Parameters
    ----------
    errors
        The surest first. Their images are read again, from their files.
    images
        How many were classified, for the title.

    Returns
    -------
    bytes
        A PNG.
    """
    shown = errors[:MOST]
    rows = -(-len(shown) // COLUMNS)
    cell, top = SIDE + GAP, GAP + 2 * LINE
    height = SIDE + 3 * LINE + GAP
    width = GAP + COLUMNS * cell
    sheet = Image.new("RGB", (width, top + rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    title = f"{len(errors)} of {images} images are classified wrongly"
    title += f": the {MOST} surest" if len(errors) > MOST else ", the surest first" if len(errors) > 1 else ""
    title += ". Black: the class. Red: what it was called." if errors else ""
    _write(draw, (GAP, GAP), title, width - 2 * GAP, "black")
    for number, one in enumerate(shown):
        x, y = GAP + number % COLUMNS * cell, top + number // COLUMNS * height
        _place(sheet, one, x, y)
        probability = f" {100 * one.probability:.0f} %"
        _write(draw, (x, y + SIDE + 1), one.truth, SIDE, "black")
        _write(draw, (x, y + SIDE + 1 + LINE), one.predicted, SIDE, "#b00020", "as ", probability)
        _write(draw, (x, y + SIDE + 1 + 2 * LINE), Path(one.image).name, SIDE, "#707070")
    data = io.BytesIO()
    sheet.save(data, format="PNG")
    return data.getvalue()


def _place(sheet: Image.Image, one: Mistake, x: int, y: int) -> None:
    """Put an image, shrunk or magnified, into the middle of its square."""
    try:
        image = ImageOps.contain(decode(one.image), (SIDE, SIDE), Image.Resampling.BICUBIC)
    except DataError:  # it was given in memory, or is gone
        image = Image.new("RGB", (SIDE, SIDE), "#d8d8d8")
    square = Image.new("RGB", (SIDE, SIDE), "#f0f0f0")
    square.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
    sheet.paste(ImageOps.expand(square.crop((1, 1, SIDE - 1, SIDE - 1)), 1, "#c0c0c0"), (x, y))


def _write(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, width: int, colour: str,
    before: str = "", after: str = "",
) -> None:  # fmt: skip
    """Write a line: a text, shortened to a width, between two that are whole.

    Each is drawn by itself: one from right to left would take the digits of its neighbour along.
    """
    plain = _font(_first_font())
    text, font = drawable(text)
    room = width - plain.getlength(before) - plain.getlength(after)
    if font.getlength(text) > room:
        room -= plain.getlength("…")
        while text and font.getlength(text) > room:
            text = text[:-1]
        after = f"…{after}"
    x, y = float(place[0]), place[1] + ASCENT
    for piece, its in ((before, plain), (text, font), (after, plain)):
        draw.text((x, y), piece, fill=colour, font=its, anchor="ls")
        x += its.getlength(piece)


def drawable(text: str) -> tuple[str, ImageFont.FreeTypeFont]:
    """Give a text as a font can draw it, and the font: what none on this machine has is escaped."""
    wanted = {char for char in text if char.isprintable()}
    path = next((path for path in _fonts(wanted) if wanted <= _letters(path)), _first_font())
    have = _letters(path)
    shown = "".join(char if char in have else char.encode("unicode_escape").decode() for char in text)
    return shown, _font(path)


def _fonts(wanted: set[str]) -> Sequence[str]:
    """Give font files to try: the one that matplotlib has, or those of the system where it will not do."""
    if wanted <= _letters(_first_font()):
        return [_first_font()]
    from matplotlib.font_manager import fontManager

    found = {entry.fname for entry in fontManager.ttflist if entry.style == "normal"}
    return sorted(path for path in found if not re.search("LastResort|AdobeBlank", path))  # draw boxes


@cache
def _first_font() -> str:
    import matplotlib

    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


@cache
def _letters(path: str) -> frozenset[str]:
    """Give the characters that a font has; none of one that can't be drawn at this size."""
    from matplotlib.ft2font import FT2Font

    try:
        _font(path)
        return frozenset(map(chr, FT2Font(path).get_charmap()))
    except (OSError, RuntimeError):
        return frozenset()


@cache
def _font(path: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, SIZE)

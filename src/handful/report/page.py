"""A bench's report: Markdown, and one HTML page that stands alone."""

from __future__ import annotations

import base64
import html
import io
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from handful.analysis.manifold import Manifold, manifold
from handful.bench import id_of, read_results
from handful.data import decode
from handful.errors import DataError
from handful.files import write_atomically
from handful.report import pictures
from handful.report.tables import (
    Group,
    Sheet,
    accuracy_sheet,
    averages,
    class_sheet,
    confusions,
    group,
    manifold_sheet,
    paired_sheet,
)

THUMBNAIL = 96
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; font-size: 0.9rem; display: block; overflow-x: auto }
th, td { border: 1px solid #ddd; padding: 0.25rem 0.6rem; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left } th { background: #f4f4f4 }
img { max-width: 100% }
figure { display: inline-block; margin: 0.5rem; text-align: center; font-size: 0.85rem }
.oracle { color: #a00; font-weight: bold } p.note { color: #555; font-size: 0.9rem }
"""


def write_report(folder: Path) -> list[Path]:
    """Write `report.md` and `report.html` into a bench's folder.

    Raises
    ------
    DataError
        The folder holds no results.
    """
    markdown = ["# What the bench found", ""]
    page = [f"<h1>What the bench found</h1><p class='note'>{html.escape(str(folder.name))}</p>"]
    groups = group(read_results(folder))
    for found in [*averages(groups), *groups]:
        page.append(f"<h2>{html.escape(found.title)}</h2>")
        markdown.append(f"## {found.title}\n")
        for sheet in sheets(found, folder):
            markdown.append(sheet.markdown())
            page.append(as_html(sheet))
        page += [f"<p><img src='{source(picture)}' alt=''></p>" for picture in draw(found)]
        for test in found.tests:
            page.append(as_figures(found, folder, test))
            lying = manifolds(found, folder, test)
            facts = read_test(found, folder, test)
            if len(lying) > 1 and facts:
                sheet = manifold_sheet(found, test, lying)
                markdown.append(sheet.markdown())
                picture = source(pictures.manifolds(lying, facts[1]))
                page += [as_html(sheet), f"<p><img src='{picture}' alt=''></p>"]
    document = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>handful: report</title>"
        f"<style>{STYLE}</style></head><body>{''.join(page)}</body></html>"
    )
    paths = [folder / "report.md", folder / "report.html"]
    for path, text in zip(paths, ("\n".join(markdown), document), strict=True):
        write_atomically(path, text.encode(errors="replace"))  # a file name may be no Unicode
    return paths


def sheets(found: Group, folder: Path) -> list[Sheet]:
    """Give the tables of a group."""
    tables = [accuracy_sheet(found)]
    for test in found.tests:
        facts = read_test(found, folder, test)
        if facts is None or not any(found.select(m, test, found.shots[-1]) for m in found.methods):
            continue
        labels, names, _ = facts
        tables.append(paired_sheet(found, test, labels))
        changes = class_sheet(found, test, names)
        if changes:
            tables.append(changes)
    return tables


def read_test(found: Group, folder: Path, test: str) -> tuple[NDArray[np.int64], list[str], list[str]] | None:
    """Give labels, class names and items of a test set; None where a run left none."""
    line = next(line for line in found.lines if line["test"] == test)
    if "splits" not in line:  # a mean over data sets
        return None
    try:
        facts = json.loads((folder / "tests" / f"{id_of(line, test)}.json").read_bytes())
    except (OSError, ValueError):
        return None
    return np.array(facts["labels"]), facts["class_names"], facts["items"]


def source(png: bytes) -> str:
    """Write a PNG as what an `img` of a page that stands alone takes for its source."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def draw(found: Group) -> list[bytes]:
    """Give the pictures of a group."""
    drawn = []
    if len(found.shots) > 1:
        drawn += [pictures.curves(found, test) for test in found.tests]
    if len(found.tests) > 1:
        drawn.append(pictures.bars(found))
    return [*drawn, pictures.price(found, found.tests[0])] if found.tests else drawn


def manifolds(found: Group, folder: Path, test: str) -> dict[str, Manifold]:
    """Lay out the features that the bench kept, by method: zero-shot's, and those it moved."""
    facts, lying = read_test(found, folder, test), {}
    for line in found.lines:
        kept = folder / line.get("features", "")
        if facts is not None and line["test"] == test and kept.is_file():
            with np.load(kept) as read:
                lying[line["method"]] = manifold(read["features"].astype(np.float32), facts[0][read["rows"]])
    return lying


def as_html(sheet: Sheet) -> str:
    """Write a table as HTML; what looked at the test set is red."""

    def cell(text: str, tag: str) -> str:
        strong = text.startswith("**")
        inner = html.escape(text.strip("*"))
        return f"<{tag}{' class=oracle' if strong else ''}>{inner}</{tag}>"

    head = "".join(cell(text, "th") for text in sheet.header)
    body = "".join("<tr>" + "".join(cell(text, "td") for text in row) + "</tr>" for row in sheet.rows)
    notes = "".join(
        f"<p class='{'oracle' if note.startswith('**') else 'note'}'>{html.escape(note.strip('*'))}</p>"
        for note in sheet.notes
    )
    return f"<h3>{html.escape(sheet.title)}</h3><table><tr>{head}</tr>{body}</table>{notes}"


def as_figures(found: Group, folder: Path, test: str) -> str:
    """Show an image of each pair of classes that the best method mistakes most."""
    facts = read_test(found, folder, test)
    if facts is None:
        return ""
    labels, names, items = facts
    figures = []
    for truth, answer, times, row in confusions(found, test, labels):
        caption = f"{names[truth]} taken for {names[answer]}, {times} times"
        figures.append(
            f"<figure><img src='{thumbnail(items[row])}' alt='{html.escape(items[row])}'>"
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
    title = f"Worst confusions: {found.best(test)}, {found.title}, {test}, {found.shots[-1]} shots"
    return f"<h3>{html.escape(title)}</h3>{''.join(figures)}" if figures else ""


def thumbnail(item: str) -> str:
    """Give the source of a small picture; of nothing where the image is gone."""
    try:
        image = decode(item)
    except DataError:
        return "data:,"
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    data = io.BytesIO()
    image.save(data, format="PNG")
    return source(data.getvalue())

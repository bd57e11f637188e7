"""Text files are read and written with their encoding named: the locale's would differ by machine."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path for room in ("src", "tools", "benchmarks", "docs") for path in (ROOT / room).rglob("*.py")
)
ENCODING_AT = {"read_text": 0, "write_text": 1, "open": 2, "TextIOWrapper": 1}
"""Functions that read or write text, and where among their arguments the encoding stands."""
OF_BYTES = {"Image", "os", "zipfile", "tarfile", "safetensors"}
"""What else has a function `open`."""


def reads_text(name: str, node: ast.Call, keywords: dict[str | None, ast.expr]) -> bool:
    """Say whether a call is one of text, without a positional encoding."""
    owner = getattr(node.func, "value", None)
    is_method = owner is not None and getattr(owner, "id", "") != "io"
    if name != "open":
        return (is_method or name == "TextIOWrapper") and len(node.args) <= ENCODING_AT[name]
    if getattr(owner, "id", "") in OF_BYTES:
        return False
    at = 0 if is_method else 1  # where the mode stands; the encoding two behind it
    mode = keywords.get("mode", node.args[at] if len(node.args) > at else None)
    return "b" not in str(getattr(mode, "value", "")) and len(node.args) <= at + 2


def unnamed_encodings(source: str) -> list[int]:
    """Lines on which text is read or written in whatever encoding the locale has."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        keywords = {word.arg: word.value for word in node.keywords}
        of_text = getattr(keywords.get("text"), "value", False) is True  # of subprocess
        if name in ENCODING_AT:
            of_text = reads_text(name, node, keywords)
        if of_text and "encoding" not in keywords:
            found.append(node.lineno)
    return found


def test_every_text_file_has_an_encoding():
    found = {str(path.relative_to(ROOT)): unnamed_encodings(path.read_text("utf-8")) for path in SOURCES}
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    ("line", "is_named"),
    [
        ("path.read_text()", False),
        ("path.write_text('a')", False),
        ("open(path)", False),
        ("open(path, 'w')", False),
        ("path.open('a')", False),
        ("io.open(path)", False),
        ("io.TextIOWrapper(raw)", False),
        ("subprocess.run(words, text=True)", False),
        ("path.read_text('utf-8')", True),
        ("path.write_text('a', encoding='utf-8')", True),
        ("open(path, 'rb')", True),
        ("path.open('xb')", True),
        ("path.open(mode='wb')", True),
        ("open(path, 'w', encoding='utf-8')", True),
        ("Image.open(path)", True),
        ("subprocess.run(words, encoding='utf-8')", True),
    ],
)
def test_the_check_sees_what_has_none(line: str, is_named: bool):
    assert (unnamed_encodings(line) == []) == is_named

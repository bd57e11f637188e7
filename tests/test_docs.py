"""Every block of the README and the docs runs: Python as it stands, `$ handful ...` by exit code."""

from __future__ import annotations

import doctest
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

from handful import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FILE = re.compile(r"# (\w+\.py)\n")
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```", re.M | re.S)
MODULES = [
    ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "src/handful").rglob("*.py"))
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page(page: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "handful-demo").mkdir()
    (tmp_path / "handful-demo/digits").symlink_to(digits)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for language, text in BLOCK.findall(page.read_text()):
        if language == "python":
            if name := FILE.match(text):  # what it begins with names a file of the user's
                (tmp_path / name[1]).write_text(text)
            exec(compile(text, page.name, "exec"), names)
            continue
        for line in text.splitlines():
            if line.startswith("$ handful ") and line != "$ handful demo":
                monkeypatch.setattr(sys, "argv", shlex.split(line[2:], comments=True))
                with pytest.raises(SystemExit) as stop:
                    cli.main()
                    sys.exit(0)
                assert not stop.value.code, line


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples(module: str):
    result = doctest.testmod(importlib.import_module(module))
    assert result.failed == 0

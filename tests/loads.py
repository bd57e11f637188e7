"""Counted reading and encoding, for tests of loading."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from handful.data import images as reading


class Counts:
    """How often each file was read, and decoded."""

    def __init__(self) -> None:
        self.reads, self.decodes = Counter[str](), Counter[str]()

    def take(self) -> tuple[list[int], list[int]]:
        """Give both, of the files that were touched since, and begin anew."""
        found = sorted(self.reads.values()), sorted(self.decodes.values())
        self.reads.clear()
        self.decodes.clear()
        return found


@pytest.fixture
def counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counts:
    """Count, with a cache of its own."""
    monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path / "cache"))
    found, read_file, decode_bytes = Counts(), reading.read_file, reading.decode_bytes

    def read(path: Path, *arguments: Any) -> bytes:
        found.reads[str(path)] += 1
        return read_file(path, *arguments)

    def decoded(data: bytes, name: str, *arguments: Any) -> Image.Image:
        found.decodes[name] += 1
        return decode_bytes(data, name, *arguments)

    monkeypatch.setattr(reading, "read_file", read)
    monkeypatch.setattr(reading, "decode_bytes", decoded)
    return found


@pytest.fixture
def paths(two_classes: Path) -> list[Path]:
    return sorted(two_classes.rglob("*.png"))


ONCE = [1] * 6

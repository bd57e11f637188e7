"""Benches that tests make and kill."""

from __future__ import annotations

from pathlib import Path

import pytest

from handful.data import Dataset, open_dataset


@pytest.fixture
def data(few_digits: Path) -> Dataset:
    return open_dataset(few_digits)

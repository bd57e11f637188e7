"""A classifier of digits that is calibrated, for the tests of what is measured on one."""

from __future__ import annotations

from pathlib import Path

import pytest

import handful


@pytest.fixture(scope="session")
def calibrated(
    mini: handful.Backbone, support: handful.ImageSet, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    clf = handful.TipAdapter(mini).fit(support).calibrate(support, false_alarm=0.1)
    return clf.save(tmp_path_factory.mktemp("evaluation") / "model")

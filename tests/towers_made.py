"""Towers with adapters, for tests inside them."""

from __future__ import annotations

from pathlib import Path

import pytest
from backbone_configs import SIGLIP
from conftest import TINY, write_model

import handful
from handful.data import ImageSet

NAMES = ("cat", "dog", "red panda")


@pytest.fixture(params=["clip", "clip-avg", "siglip", "mini"])
def any_pair(request: pytest.FixtureRequest, mini: handful.Backbone, tmp_path: Path) -> handful.Backbone:
    if request.param == "mini":
        return mini
    vision = TINY["vision_cfg"]
    config = {
        "clip": TINY,
        "clip-avg": TINY | {"vision_cfg": vision | {"pool_type": "avg"}},
        "siglip": SIGLIP,
    }
    return handful.load_backbone(*write_model(tmp_path, config[request.param]), device="cpu")


@pytest.fixture
def photos(two_classes: Path) -> ImageSet:
    return ImageSet.from_folder(two_classes)

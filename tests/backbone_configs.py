"""Backbones of several kinds, for tests of backbones."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import TINY, write_model

import handful

RESNET = TINY | {"vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}}

SIGLIP = {
    "embed_dim": 16,
    "custom_text": True,
    "init_logit_bias": -10.0,
    "vision_cfg": {
        "image_size": 160, "timm_model_name": "test_vit", "timm_model_pretrained": False,
        "timm_pool": "avg", "timm_proj": "linear",
    },
    "text_cfg": {
        "context_length": 16, "width": 32, "heads": 2, "layers": 2, "no_causal_mask": True,
        "pool_type": "last",
    },
}  # fmt: skip


@pytest.fixture(params=["clip", "custom", "mini", "siglip"])
def any_vit(request: pytest.FixtureRequest, mini: handful.Backbone, tmp_path: Path) -> handful.Backbone:
    if request.param == "mini":
        return mini
    config = {"clip": TINY, "custom": TINY | {"custom_text": True}, "siglip": SIGLIP}[request.param]
    return handful.load_backbone(*write_model(tmp_path, config), device="cpu")

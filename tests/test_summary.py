"""What a blend found, in words."""

from __future__ import annotations

import pytest

from handful.summary import summary

HELD_OUT = {"images": 40, "accuracy": 0.9, "zero_shot": 0.7, "gain": 0.2, "gain_interval": [0.05, 0.3]}
BLEND = {
    "names": 0.63,
    "shares": {"names": 0.004, "adapter": 0.3, "probe": 0.296, "ridge": 0.4},
    "held_out": HELD_OUT,
}


def test_a_blend_in_words():
    said = summary(BLEND)
    assert said["blend"].startswith(
        "kernel ridge 40 %, adapter 30 %, linear probe 30 %, zero-shot under 1 % ("
    )
    assert said["class names"].startswith("say much of these images: zero-shot has 63 %")
    assert "40 images, 90.0 % right" in said["held out"]
    assert "gain +20.0 points (95 % interval +5.0 to +30.0): it is better" in said["held out"]
    assert "say something" in summary(BLEND | {"names": 0.2})["class names"]
    assert "say little" in summary(BLEND | {"names": 0.05})["class names"]
    fixed = {name: value for name, value in BLEND.items() if name != "held_out"}
    assert "not measured" in summary(fixed)["held out"]


@pytest.mark.parametrize(
    ("interval", "words"),
    [([-0.05, 0.3], "zero-shot may be as good"), ([-0.3, -0.1], "zero-shot is better")],
)
def test_how_sure_it_is(interval: list[float], words: str):
    said = summary(BLEND | {"held_out": HELD_OUT | {"gain_interval": interval}})
    assert said["held out"].endswith(words)


@pytest.mark.parametrize(
    "selected",
    [
        {}, {"alpha": 1.0}, {"shares": 3, "names": "much"}, {"held_out": [1]}, {"shares": {"names": None}},
        {"held_out": HELD_OUT | {"gain_interval": ["a", 2]}}, {"held_out": {"images": 4}},
    ],
)  # fmt: skip
def test_nothing_is_said_of_what_is_no_blend(selected: dict[str, object]):
    assert summary(selected) == {}

"""`__all__`, the lazy table, the type checker's imports and the rooms agree; imports stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import handful
from handful import names


def test_all_is_sorted_as_ruff_sorts_and_complete():
    assert sorted(handful.__all__) == sorted(handful._ROOM_OF)
    assert len(set(handful.__all__)) == len(handful.__all__)


@pytest.mark.parametrize("name", handful.__all__)
def test_every_name_is_there_and_documented(name: str):
    value = getattr(handful, name)
    assert name == "METHODS" or value.__doc__


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(handful.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name for node in ast.walk(block) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == set(handful.__all__)


def test_unknown_name():
    with pytest.raises(AttributeError, match="nothing_here"):
        handful.nothing_here  # noqa: B018


def test_every_error_is_public():
    from handful import errors

    defined = {n for n, v in vars(errors).items() if isinstance(v, type) and issubclass(v, Exception)}
    assert defined <= set(handful.__all__)


COMMANDS = (
    "", "demo", "fit", "meta-train", "compare", "predict", "evaluate", "explain", "info", "push", "pull",
    "export", "bench", "report", "analyze", "analyze layers", "serve",
)  # fmt: skip


def test_help_needs_no_torch():
    calls = [[*command.split(), "--help"] for command in COMMANDS]
    script = (
        "import sys; from handful.cli import app\n"
        f"for words in {calls!r}:\n"
        "    try: app(words)\n"
        "    except SystemExit as stop: assert not stop.code, words\n"
        "heavy = {'torch', 'open_clip', 'sklearn', 'numpy', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage: ") == len(COMMANDS)


def test_every_command_is_known():
    from handful.cli import app

    found = {one.name or one.callback.__name__.replace("_", "-") for one in app.registered_commands}
    assert found == {command for command in COMMANDS if command and " " not in command} - {"analyze"}


def test_the_light_names_are_those_of_the_methods():
    assert tuple(handful.METHODS) == names.METHODS
    assert tuple(name for name, cls in handful.METHODS.items() if cls.online) == names.ONLINE


HEAVY = (
    "open_clip", "timm", "torchvision", "sklearn.linear_model", "scipy.optimize", "matplotlib",
    "huggingface_hub", "transformers", "torch._dynamo", "sympy",
)  # fmt: skip
"""Modules that take a second or more, or bring one along that does."""


def test_encoding_with_mini_needs_little_beside_torch():
    script = (
        "import sys, numpy as np\n"
        "from handful.backbones import load_backbone\n"
        "from handful.data.images import decode\n"
        "backbone = load_backbone('mini')\n"
        "backbone.fingerprint, backbone.joint_width\n"
        "image = decode(np.zeros((90, 70, 3), np.uint8))\n"
        "pixels = backbone.preprocess(image) + backbone.view(image, 1, (0.5, 1.0))\n"
        "assert backbone.encode_image(pixels[None]).shape == (1, 256)\n"
        f"heavy = [name for name in {HEAVY} if name in sys.modules]\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

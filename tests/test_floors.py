"""A module imports only from lower floors, or from its own room."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "handful"
FLOORS = (
    ("errors", "files", "names", "progress", "types"),
    ("backbones", "data", "resume"),
    ("features", "metrics", "model_card", "towers"),
    ("checkpoint", "heads", "prompts", "search", "selection", "train"),
    ("estimator",),
    ("methods",),
    ("analysis", "meta_training", "protocols"),
    ("bench", "compare", "export", "hub"),
    ("report",),
    ("serve",),
    ("cli",),
    ("__main__",),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def imports(source: str) -> set[str]:
    """Modules of handful that a source imports, as `room` or `room.file`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{a.name}" for a in node.names] + [str(node.module)]
        else:
            continue
        found |= {name.removeprefix("handful.") for name in names if name.startswith("handful.")}
    return found


def violations(path: Path, source: str) -> list[str]:
    """Imports of one module that go sideways or up."""
    parts = path.with_suffix("").parts
    room, bad = parts[0], []
    for target in sorted(imports(source)):
        other = target.split(".")[0]
        if other not in FLOOR_OF:
            continue
        if room == other:
            is_sibling_method = room == "methods" and parts[-1] != "__init__" and "." in target
            if is_sibling_method:
                bad.append(f"{path} imports its sibling {target}")
        elif FLOOR_OF[other] >= FLOOR_OF[room]:
            bad.append(f"{path} (floor {FLOOR_OF[room]}) imports {target} (floor {FLOOR_OF[other]})")
    return bad


MODULES = sorted(p.relative_to(ROOT) for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_go_down(module: Path):
    assert violations(module, (ROOT / module).read_text()) == []


def test_every_room_has_a_floor():
    rooms = {module.with_suffix("").parts[0] for module in MODULES}
    assert rooms == set(FLOOR_OF)


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("heads.py", "from handful.estimator import Task"),
        ("backbones/openclip.py", "from handful.data.images import decode"),
        ("methods/zero_shot.py", "from handful.methods.tip_adapter import TipAdapter"),
        ("features/store.py", "import handful.cli"),
        ("prompts.py", "from handful import protocols"),
        ("towers/prefix.py", "from handful.prompts import with_context"),
    ],
)
def test_the_check_sees_a_broken_floor(module: str, line: str):
    source = line + "\n" + (ROOT / module).read_text()
    assert violations(
        Path(module),
        source.replace("from handful import", "from handful. import".replace(". ", " ")),
    )

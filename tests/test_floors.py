"""A module imports only from lower floors, or from its own room."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "handful"
FLOORS = (
    ("errors", "files", "names", "progress", "summary", "types"),
    ("balance", "metrics", "model_card", "resume", "schedule"),
    ("backbones", "checkpoint", "data"),
    ("heads", "left_out", "search", "selection"),
    ("cache", "convex", "features", "towers", "train"),
    ("prompts", "refiner"),
    ("estimator",),
    ("extend", "methods"),
    ("analysis", "meta_training", "protocols"),
    ("answers", "bench", "compare", "evaluation", "export", "hub"),
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
            method, own = target.split(".")[:3], list(parts[:3])  # methods/<what they touch>/<method>
            if room == "methods" and len(parts) > 2 and len(method) == 3 and method != own:
                bad.append(f"{path} imports its sibling {target}")
        elif FLOOR_OF[other] >= FLOOR_OF[room]:
            bad.append(f"{path} (floor {FLOOR_OF[room]}) imports {target} (floor {FLOOR_OF[other]})")
    return bad


MODULES = sorted(p.relative_to(ROOT) for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_go_down(module: Path):
    assert violations(module, (ROOT / module).read_text()) == []


def arrows(name: str, source: str, known: set[str]) -> set[str]:
    """Modules that a module imports: `from room import file` means the file, not the room."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {one if one.removeprefix("handful.") in known else str(node.module) for one in inner}
    return ({one.removeprefix("handful.") for one in found} & known) - {name}


def test_imports_form_no_cycle():
    """Those under TYPE_CHECKING and inside functions among them."""
    known = {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in MODULES}
    graph = {name: arrows(name, (ROOT / path).read_text(), set(known)) for name, path in known.items()}
    done: set[str] = set()
    while left := set(graph) - done:
        free = {name for name in left if graph[name] <= done}
        assert free, f"a cycle among {sorted(left)}"
        done |= free


def test_every_room_has_a_floor():
    rooms = {module.with_suffix("").parts[0] for module in MODULES}
    assert rooms == set(FLOOR_OF)


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("heads.py", "from handful.estimator import Task"),
        ("backbones/openclip.py", "from handful.data.images import decode"),
        ("methods/features/zero_shot.py", "from handful.methods.features.tip_adapter import TipAdapter"),
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

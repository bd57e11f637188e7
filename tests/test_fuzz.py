"""Damaged classifiers: a clear error, or an answer."""

from __future__ import annotations

import copy
import json
import math
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import writes
from fuzzing import ALONE, DEEP, FORMS, TRIALS, Saved, numbers, patience, short, spoil, tell

import handful

VALUES: tuple[Any, ...] = (None, True, -1, math.inf, "x", [], {}, "x" * 100_000)
"""That every key of head.json takes in turn."""

MORE: tuple[Any, ...] = (
    0, 3, 1e300, -1e-300, math.nan, 10**30, "\0", "\ud800", "../../etc/passwd", "__class__", "[" * 900,
    [None], [[1], [2, 3]], {"": {}}, [True, False, True], ["a", "a", "a"], ["a", None, "b"], ["a", "b", []],
)  # fmt: skip

NAMES: tuple[Any, ...] = (
    "", " ", "../../etc/passwd", "/dev/zero", "a\0", "\0", "x" * 100_000, "red panda", "Red Panda", "\ud800",
    "‮txt.exe", "line\nbreak", "__class__", "😀", None, 3, True, 1.5, ["a"], {"a": 1},
)  # fmt: skip

TENSOR_NAMES = (
    "__class__", "", "__metadata__", "../x", "a\0b", "labels", "class_weights", "down.image.1.weight",
    "down.image." + "9" * 5000 + ".weight", "down.image.²." "weight", "image.ratio", "x" * 10_000,
)  # fmt: skip

DTYPES = (
    torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool,
    torch.complex64,
)  # fmt: skip

INTEGERS = (torch.int64, torch.int32, torch.uint8)

NUMBERS = (math.nan, math.inf, -math.inf, 0.0, -1.0, 1e38, -3e38, 1e-45, 1e15, 99.0)


# -- saved classifiers ----------------------------------------------------------------------------

KINDS = [*FORMS, *(f"{kind}, alone" for kind in ALONE)]


def attempt(
    saved: Saved,
    folder: Path,
    tiny: handful.Backbone,
    probe: tuple[list[np.ndarray], handful.Features],
    again: bool = True,
) -> str:
    """Load what was damaged, and predict: it works, or says why not, and writes nothing.

    What works is saved and loaded `again`.
    """
    path = saved.write(folder)
    names = {"class_names": ["cat", "dog", "cow"]} if saved.alone else {}
    with writes() as written, patience():
        try:
            clf = handful.load(path, backbone=tiny if saved.has_backbone else None, **names)
        except handful.HandfulError as error:
            assert len(str(error)) > 10
            outcome = "refused"
        else:
            outcome = "loaded" if works(clf, probe) else "refused by predict"
    assert written == []
    if outcome == "loaded" and again:
        assert works(handful.load(clf.save(folder / "again"), backbone=clf.backbone), probe)
    return outcome


def works(clf: handful.FewShotClassifier, probe: tuple[list[np.ndarray], handful.Features]) -> bool:
    """Whether a classifier predicts; what it says must be right in form."""
    images = probe[0] if clf.head_.needs == "pixels" else probe[1]
    try:
        found = clf.predict_proba(images)
    except handful.HandfulError as error:
        assert len(str(error)) > 10
        return False
    assert found.shape == (6, len(clf.class_names_))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-4)
    assert set(clf.predict(images).tolist()) <= set(clf.classes_.tolist())
    if clf.calibration_:
        assert clf.predict(images, unknown="auto").shape == (6,)
    assert clf.info()["class_names"] == list(clf.class_names_)
    assert str(clf.explain(images[:1]))
    return True


# -- ways to damage them --------------------------------------------------------------------------


def paths_of(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Give the place of every value inside nested lists and objects."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, found in inside:
        yield (*before, key)
        yield from paths_of(found, (*before, key))


def put(facts: Any, path: tuple[Any, ...], value: Any) -> None:
    """Replace a value at its place."""
    for key in path[:-1]:
        facts = facts[key]
    facts[path[-1]] = value


def replace_value(saved: Saved, rng: random.Random, _: dict[str, Saved]) -> str:
    paths = list(paths_of(saved.facts))
    if not paths:
        return "nothing left to replace"
    path, value = rng.choice(paths), rng.choice(VALUES + MORE)
    put(saved.facts, path, copy.deepcopy(value))
    saved.stamp = saved.stamp and path != ("tensors",)
    return f"{path} = {short(value)}"


def drop_key(saved: Saved, rng: random.Random, _: dict[str, Saved]) -> str:
    paths = [path for path in paths_of(saved.facts) if isinstance(path[-1], str)]
    if not paths:
        return "nothing left to drop"
    path, found = rng.choice(paths), saved.facts
    for key in path[:-1]:
        found = found[key]
    del found[path[-1]]
    return f"without {path}"


def nest(saved: Saved, rng: random.Random, _: dict[str, Saved]) -> str:
    paths, depth = list(paths_of(saved.facts)), rng.choice([50, 400, 900, 100_000])
    if not paths:
        return "nothing left to nest"
    path, (left, right) = rng.choice(paths), rng.choice(["[]", ('{"a":', "}")])
    put(saved.facts, path, DEEP)
    saved.deep = f"{left * depth}1{right * depth}"
    return f"{path} nested {depth} deep"


def forget_backbone(saved: Saved, rng: random.Random, _: dict[str, Saved]) -> str:
    if isinstance(saved.facts, dict):
        saved.facts["backbone"] = {"name": None, "fingerprint": rng.choice(["", "x", None])}
    return "no backbone recorded"


def rename_class(saved: Saved, rng: random.Random, _: dict[str, Saved]) -> str:
    names = saved.facts.get("class_names") if isinstance(saved.facts, dict) else None
    if not isinstance(names, list) or not names:
        return "no class names left"
    row, name = rng.randrange(len(names)), rng.choice(NAMES)
    names[row] = name
    classes = saved.facts.get("classes")
    if rng.random() < 0.7 and isinstance(classes, list) and row < len(classes):
        classes[row] = name
    return f"class {row} is {short(name)}"


def change_tensor(saved: Saved, rng: random.Random, _: dict[str, Saved]) -> str:
    if not saved.tensors:
        return "no tensors left"
    name = rng.choice(sorted(saved.tensors))
    old = saved.tensors[name]
    way = rng.choice(["rename", "drop", "add", "swap", "dtype", "shape", "size", "numbers", "one", "labels"])
    new = old.clone()
    if way == "rename":
        del saved.tensors[name]
        name = rng.choice(TENSOR_NAMES)
    elif way == "drop":
        del saved.tensors[name]
        return f"without tensor {name}"
    elif way == "add":
        name = rng.choice(TENSOR_NAMES)
    elif way == "swap":
        other = rng.choice(sorted(saved.tensors))
        saved.tensors[other], new = new, saved.tensors[other].clone()
        way = f"swapped with {other}"
    elif way == "dtype":
        new = (new.real if new.is_complex() else new).to(rng.choice(DTYPES))
    elif way == "shape":
        shapes = [(-1,), (1, *old.shape), (*old.shape, 1), old.shape[::-1], (), (0,), (0, 5)]
        shape = rng.choice(shapes)
        new = new.reshape(shape) if math.prod(shape) == old.numel() or -1 in shape else new.new_zeros(shape)
    elif way == "size":
        dim = rng.randrange(max(old.ndim, 1))
        sizes = list(old.shape) or [1]
        sizes[dim] = rng.choice([0, 1, sizes[dim] - 1, sizes[dim] + 1, 3 * sizes[dim]])
        new = torch.ones([max(size, 0) for size in sizes], dtype=old.dtype)
    elif way == "labels":
        new = torch.randint(-9, 99, old.shape)
    elif old.numel():
        number = rng.choice(NUMBERS)
        if not old.is_floating_point():
            number = float(rng.choice([-1, 0, 3, 10**6, -(10**15)]))
        if old.dtype in INTEGERS:  # torch writes no other
            number = min(max(int(number), torch.iinfo(old.dtype).min), torch.iinfo(old.dtype).max)
        if old.dtype == torch.float16 and math.isfinite(number):
            number = min(max(number, -6e4), 6e4)
        if way == "one":
            new.view(-1)[rng.randrange(old.numel())] = number
        else:
            new = torch.full_like(old, number)
        way = f"{way} {number}"
    saved.tensors[name] = new.contiguous()
    return f"tensor {short(name)}: {way}, {new.dtype} {list(new.shape)}"


def swap_files(saved: Saved, rng: random.Random, shelf: dict[str, Saved]) -> str:
    other = shelf[rng.choice(sorted(shelf))]
    what = rng.choice(["tensors", "facts", "head", "method", "parameters"])
    if what == "tensors":
        saved.tensors = dict(other.tensors)
    elif what == "facts":
        saved.facts = copy.deepcopy(other.facts)
    elif isinstance(saved.facts, dict):
        saved.facts[what] = copy.deepcopy(other.facts[what])
    return f"{what} of {other.kind}"


def damage_bytes(saved: Saved, rng: random.Random, _: dict[str, Saved]) -> str:
    file = rng.choice(["facts", "tensors"])
    way, change = spoil(rng)
    saved.bytes_of.setdefault(file, []).append(change)
    saved.stamp = rng.random() < 0.8
    return f"{file}: {way}{'' if saved.stamp else ', not stamped'}"


def damage_header(saved: Saved, rng: random.Random, _: dict[str, Saved]) -> str:
    """Replace a value in the header of the tensors."""
    place = rng.random()
    value = rng.choice(
        [*VALUES, 0, 1, 2**31, 2**62, 2**63, 2**64, 10**30, [0, 2**63], [2**32, 2**32], [-1], [0], "F4",
         "BF16", "F8_E4M3", "I64", "BOOL", "C64", "U64", "F64"]
    )  # fmt: skip

    def change(data: bytes) -> bytes:
        size = int.from_bytes(data[:8], "little")
        try:
            header = json.loads(data[8 : 8 + size])
            paths = list(paths_of(header))
            put(header, paths[int(place * len(paths))], value)
        except (ValueError, TypeError, IndexError):  # damaged already
            return data
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + size :]

    saved.bytes_of.setdefault("tensors", []).append(change)
    return f"header at {place:.3f} = {short(value)}"


WAYS = (
    replace_value, replace_value, drop_key, nest, rename_class, forget_backbone, change_tensor, change_tensor,
    change_tensor, swap_files, damage_bytes, damage_header,
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_classifier_works_or_says_what_is_wrong(
    kind: str, shelf: dict[str, Saved], tiny: handful.Backbone, probe: Any, tmp_path: Path
):
    found, start = Counter[str](), time.perf_counter()
    assert attempt(shelf[kind].copied(), tmp_path, tiny, probe) == "loaded"
    for number in numbers():
        rng, saved = random.Random(f"{kind} {number}"), shelf[kind].copied()
        steps = [rng.choice(WAYS)(saved, rng, shelf) for _ in range(rng.choice([1, 1, 1, 2, 3]))]
        try:
            found[attempt(saved, tmp_path, tiny, probe, again=number % 5 == 0)] += 1
        except BaseException as error:
            raise AssertionError(f"{kind}, trial {number}: {'; '.join(steps)}") from error
    tell(kind, found, start)


@pytest.mark.parametrize("kind", KINDS)
def test_every_value_of_the_facts_may_be_something_else(
    kind: str, shelf: dict[str, Saved], tiny: handful.Backbone, probe: Any, tmp_path: Path
):
    """All of them where there are many trials, else one in 40."""
    step, found, start = 1 if TRIALS >= 1000 else 40, Counter[str](), time.perf_counter()
    every = [(path, value) for path in paths_of(shelf[kind].facts) for value in VALUES]
    for path, value in every[KINDS.index(kind) % step :: step]:
        saved = shelf[kind].copied()
        put(saved.facts, path, value)
        saved.stamp = path != ("tensors",)
        try:
            found[attempt(saved, tmp_path, tiny, probe, again=False)] += 1
        except BaseException as error:
            raise AssertionError(f"{kind}: {path} = {short(value)}") from error
    tell(f"{kind}, walked", found, start)

"""Damaged and hostile files end in a classifier or an image that works, or in one clear error; none hangs.

Every trial is drawn from its own number, and a failure names it: `HANDFUL_FUZZ_FROM=1234 HANDFUL_FUZZ=1`
draws that one again, `HANDFUL_FUZZ=20000 pytest -s tests/test_fuzz.py` draws so many of every kind.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
import os
import random
import signal
import struct
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import writes
from PIL import Image, ImageFile
from safetensors.torch import load, save
from torch import Tensor

import handful
from handful.bench import as_lines
from handful.data import decode
from handful.data.images import FORMATS
from handful.data.sets import check_names
from handful.refiner import Refiner
from handful.schedule import seeded

TRIALS = int(os.environ.get("HANDFUL_FUZZ", "25"))
FIRST = int(os.environ.get("HANDFUL_FUZZ_FROM", "0"))
PATIENCE = 60
"""Seconds that one trial may take."""
FORMS: dict[str, dict[str, Any]] = {
    "zero-shot": {},
    "linear-probe": {"max_iter": 5},
    "logistic-probe": {"selection": "fixed"},
    "tip-adapter": {},
    "tip-adapter-f": {"epochs": 1, "views": 0},
    "meta-adapter": {},
    "clip-adapter": {"side": "both", "epochs": 1, "views": 0, "selection": "fixed"},
    "text-tuning": {"epochs": 1, "views": 0},
    "fine-tuning": {"epochs": 1, "views": 0},
    "coop": {"epochs": 1, "length": 2, "views": 0},
    "cocoop": {"epochs": 1, "batch_size": 8, "views": 0},
    "mma": {"epochs": 1, "views": 0, "width": 4},
}
CALIBRATED = ("tip-adapter", "clip-adapter")
ALONE = ("coop", "text-tuning", "clip-adapter", "cocoop", "mma")
"""Whose learned tensors are saved alone too."""
CLASSES = ("lamp", "red panda", "mug")
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
DEEP = "stands for deep nesting"
NUMBERS = (math.nan, math.inf, -math.inf, 0.0, -1.0, 1e38, -3e38, 1e-45, 1e15, 99.0)


class Hung(BaseException):
    """A trial took longer than PATIENCE."""


@contextmanager
def patience() -> Iterator[None]:
    """Stop what hangs."""

    def stop(*_: object) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def numbers() -> range:
    """The trials of one kind."""
    return range(FIRST, FIRST + TRIALS)


# -- saved classifiers -------------------------------------------------------------------------------


@dataclass
class Saved:
    """What one classifier's files hold, and what was done to them."""

    kind: str
    facts: Any
    tensors: dict[str, Tensor]
    alone: bool = False
    stamp: bool = True
    deep: str = ""
    """What stands for DEEP."""
    bytes_of: dict[str, list[Any]] = field(default_factory=dict)
    """Damage to come, by file: functions of bytes."""

    def copied(self) -> Saved:
        """Give one that may be damaged."""
        return Saved(self.kind, copy.deepcopy(self.facts), dict(self.tensors), self.alone)

    @property
    def has_backbone(self) -> bool:
        """Whether a backbone must be given: one that is not recorded need not be."""
        found = self.facts.get("backbone") if isinstance(self.facts, dict) else None
        return not isinstance(found, dict) or "name" not in found or found["name"] is not None

    def text(self, facts: Any) -> str:
        """Write the facts out."""
        return json.dumps(facts).replace(json.dumps(DEEP), self.deep or "0")

    def damaged(self, file: str, data: bytes) -> bytes:
        """Give a file's bytes after what was done to them."""
        for change in self.bytes_of.get(file, []):
            data = change(data)
        return data

    def write(self, folder: Path) -> Path:
        """Write the files, and give what to load."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.alone:
            text = self.text(self.facts)
            data = save(self.tensors, {"handful": text}) if self.tensors else b""
            (folder / "learned.safetensors").write_bytes(self.damaged("tensors", data))
            return folder / "learned.safetensors"
        data = self.damaged("tensors", save(self.tensors))
        facts = self.facts
        if self.stamp and isinstance(facts, dict) and "tensors" in facts:
            facts = facts | {"tensors": hashlib.sha256(data).hexdigest()}
        (folder / "head.safetensors").write_bytes(data)
        (folder / "head.json").write_bytes(self.damaged("facts", self.text(facts).encode()))
        return folder


@pytest.fixture(scope="module")
def probe(tiny: handful.Backbone) -> tuple[list[np.ndarray], handful.Features]:
    """Images, and their features."""
    rng = np.random.default_rng(7)
    images = [rng.integers(0, 255, (40, 32, 3), np.uint8) for _ in range(6)]
    return images, handful.encode(tiny, images, cache=False)


@pytest.fixture(scope="module")
def shelf(tiny: handful.Backbone, probe: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Saved]:
    """A classifier of every kind, and what some of them learned alone."""
    assert FORMS.keys() == handful.METHODS.keys()
    found, labels = {}, [CLASSES[n % 3] for n in range(6)]
    refiner = Refiner(16).reset(seeded(0)).requires_grad_(False)
    for kind, parameters in FORMS.items():
        given = {"refiner": refiner} if kind == "meta-adapter" else parameters
        clf = handful.METHODS[kind](tiny, **given).fit(probe[0], labels, class_names=CLASSES)
        if kind in CALIBRATED:
            clf.calibrate(probe[0], labels, false_alarm=0.3)
        folder = clf.save(tmp_path_factory.mktemp("saved") / kind)
        facts = json.loads((folder / "head.json").read_text())
        found[kind] = Saved(kind, facts, load((folder / "head.safetensors").read_bytes()))
        if kind in ALONE:
            data = clf.save_learned(folder / "learned.safetensors").read_bytes()
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            found[f"{kind}, alone"] = Saved(
                kind, json.loads(header["__metadata__"]["handful"]), load(data), alone=True
            )
    return found


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


# -- ways to damage them -----------------------------------------------------------------------------


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


def short(value: Any) -> str:
    """Write a value for a message."""
    text = repr(value)
    return text if len(text) < 60 else f"{text[:40]}... ({len(text)})"


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


def spoil(rng: random.Random) -> tuple[str, Any]:
    """Draw a way to damage bytes: its name, and the function."""
    way = rng.choice(["cut", "flip", "bytes", "zeros", "insert", "leave out", "number", "double", "empty"])
    places = [rng.random() for _ in range(rng.choice([1, 1, 2, 8, 60]))]
    drawn = rng.randbytes(rng.choice([1, 2, 4, 8, 64]))
    number = rng.choice([0, 1, 255, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFF00]).to_bytes(4, "big")
    number = number[:: rng.choice([-1, 1])][rng.choice([0, 2]) :]
    early = rng.random() < 0.5  # headers are at the front

    def change(data: bytes) -> bytes:
        spoiled, size = bytearray(data), len(data)
        if way == "empty" or not size:
            return b""
        at = [int(place * (min(size, 256) if early else size)) for place in places]
        if way == "cut":
            return data[: at[0]]
        for place in at:
            if way == "flip":
                spoiled[place] ^= 1 << (drawn[0] % 8)
            elif way == "bytes":
                spoiled[place] = drawn[0]
            elif way == "zeros":
                spoiled[place : place + 64] = bytes(len(spoiled[place : place + 64]))
            elif way == "insert":
                spoiled[place:place] = drawn
            elif way == "leave out":
                del spoiled[place : place + len(drawn)]
            elif way == "number":
                spoiled[place : place + len(number)] = number
            elif way == "double":
                spoiled[place:place] = spoiled[: len(drawn) * 8]
                break
        return bytes(spoiled)

    return f"{way} at {', '.join(f'{place:.3f}' for place in places[:3])}, {drawn[:4].hex()}", change


WAYS = (
    replace_value, replace_value, drop_key, nest, rename_class, forget_backbone, change_tensor, change_tensor,
    change_tensor, swap_files, damage_bytes, damage_header,
)  # fmt: skip


def tell(kind: str, found: Counter[str], start: float) -> None:
    """Print the figures of a run."""
    print(f"{kind}: {found.total()} trials, {dict(found)}, {time.perf_counter() - start:.1f} s")


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


# -- images ------------------------------------------------------------------------------------------

PICTURES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "JPEG": [("RGB", {}), ("L", {}), ("CMYK", {}), ("RGB", {"progressive": True, "exif": True})],
    "PNG": [("RGB", {}), ("RGBA", {"exif": True}), ("P", {"transparency": 0}), ("I;16", {}), ("1", {})],
    "WEBP": [("RGB", {"exif": True}), ("RGBA", {"lossless": True}), ("RGB", {"save_all": True})],
    "BMP": [("RGB", {}), ("P", {}), ("1", {}), ("L", {})],
    "GIF": [("P", {"transparency": 0}), ("L", {"save_all": True}), ("RGB", {})],
    "TIFF": [
        ("RGB", {}), ("RGB", {"compression": "tiff_lzw", "exif": True}), ("F", {}), ("I;16", {}),
        ("1", {"compression": "group4"}), ("L", {"compression": "tiff_adobe_deflate"}), ("CMYK", {}),
        ("RGB", {"compression": "jpeg"}),
    ],
    "PPM": [("RGB", {}), ("L", {}), ("1", {})],
    "AVIF": [("RGB", {}), ("RGBA", {})],
}  # fmt: skip
SIZES = ((17, 23), (1, 1), (1, 40), (40, 1), (64, 64))


def pictures(kind: str) -> list[bytes]:
    """Whole files of one format, of every mode and size."""
    rng, exif, found = np.random.default_rng(0), Image.Exif(), []
    exif[0x0112], exif[0x010E] = 6, "described"
    for mode, settings in PICTURES[kind]:
        for size in SIZES:
            pixels = rng.integers(0, 255, (*size[::-1], 4), np.uint8)
            image = Image.fromarray(pixels, "RGBA")
            if mode in ("F", "I;16"):
                grey = np.asarray(image.convert("L"))
                image = Image.fromarray(grey.astype(np.float32 if mode == "F" else np.uint16))
            else:
                image = image.convert("RGB").convert(mode)
            given = dict(settings)
            if given.pop("exif", False):
                given["exif"] = exif.tobytes()
            if "save_all" in given:
                given["append_images"] = [image.rotate(90 * turn) for turn in range(3)]
            file = io.BytesIO()
            image.save(file, kind, **given)
            found.append(file.getvalue())
    return found


@pytest.fixture(scope="module")
def zero_shot(tiny: handful.Backbone) -> handful.FewShotClassifier:
    return handful.ZeroShot(tiny).fit(class_names=CLASSES)


def decodes(path: Path) -> bool:
    """Whether a file is an image; it is one in RGB, or a clear error."""
    with patience():
        try:
            image = decode(path)
        except handful.DataError as error:
            assert str(error).startswith(f"{path}: ")
            return False
    assert image.mode == "RGB"
    assert min(image.size) > 0
    assert np.asarray(image).shape == (image.height, image.width, 3)
    return True


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", [*PICTURES, "noise"])
def test_a_damaged_image_is_one_or_is_named(kind: str, tmp_path: Path, zero_shot: handful.FewShotClassifier):
    found, start, good, every = Counter[str](), time.perf_counter(), 0, []
    if kind != "noise" and kind not in FORMATS:
        pytest.skip(f"this Pillow reads no {kind}")
    whole = [pictures(kind) for kind in FORMATS] if kind == "noise" else [pictures(kind)]
    for number in numbers():
        rng = random.Random(f"{kind} {number}")
        data, ways = rng.choice(rng.choice(whole)), []
        if kind == "noise":
            data = data[: rng.choice([0, 2, 4, 8, 12, 30])] + rng.randbytes(rng.choice([0, 1, 30, 3000]))
        for _ in range(rng.choice([0, 1, 1, 2, 3])):
            way, change = spoil(rng)
            data = change(data)
            ways.append(way)
        ending = rng.choice([".jpg", ".png", ".gif", ".tif", ".txt", ""])
        path = tmp_path / rng.choice(CLASSES) / f"{number}{ending}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        try:
            right = decodes(path)
        except BaseException as error:
            raise AssertionError(f"{kind}, trial {number}: {'; '.join(ways)}") from error
        found["image" if right else "refused"] += 1
        every += [path][: 100 - len(every)]
        good += right
        if len(every) == 100 and path not in every:
            path.unlink()
    tell(kind, found, start)
    with patience():
        try:
            images = handful.ImageSet.from_folder(tmp_path, on_error="skip")
        except handful.DataError as error:
            assert "No image is left" in str(error)
        else:
            assert images.report.found == len(every)
            assert zero_shot.predict(images).shape == (len(images),)
        try:
            assert len(zero_shot.predict(every)) == len(every) == good
        except handful.DataError as error:
            assert "can't be read" in str(error)


def sized(kind: str, width: int, height: int) -> bytes:
    """Give a small image whose header announces another size."""
    data = bytearray(pictures(kind)[0])
    short, long = struct.Struct(">HH"), struct.Struct("<II")
    if kind == "PNG":
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif kind == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = short.pack(min(height, 65535), min(width, 65535))
    elif kind == "GIF":
        size = struct.pack("<HH", min(width, 65535), min(height, 65535))
        at = data.index(b"\x2c") + 5
        data[6:10], data[at : at + 4] = size, size
    elif kind == "BMP":
        data[18:26] = long.pack(width, height)
    elif kind == "PPM":
        data = data.replace(b"17 23", b"%d %d" % (width, height))
    else:
        at = int.from_bytes(data[4:8], "little") + 2
        for tag, size in ((256, width), (257, height)):
            while int.from_bytes(data[at : at + 2], "little") != tag:
                at += 12
            data[at + 2 : at + 12] = struct.pack("<HII", 4, 1, size)
    return bytes(data)


@pytest.mark.parametrize(
    "size", [(0, 0), (0, 9), (9, 0), (1, 1001), (20_000, 20_000), (2**31 - 1, 2**31 - 1)]
)
@pytest.mark.parametrize("kind", ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF"])
def test_sizes_that_no_image_has(kind: str, size: tuple[int, int], tmp_path: Path):
    (tmp_path / "a").write_bytes(sized(kind, *size))
    assert not decodes(tmp_path / "a")
    (tmp_path / "a").write_bytes(sized(kind, 17, 23))
    assert decodes(tmp_path / "a")


@pytest.mark.parametrize(
    ("size", "fine"), [((1, 1), True), ((1, 1000), True), ((1000, 1), True), ((1, 1001), False)]
)
def test_strips(size: tuple[int, int], fine: bool, tmp_path: Path, zero_shot: handful.FewShotClassifier):
    Image.new("RGB", size).save(tmp_path / "a.png")
    assert decodes(tmp_path / "a.png") == fine
    if fine:
        assert zero_shot.predict([tmp_path / "a.png"]).shape == (1,)


ODD = ("nothing", "folder", "pipe", "dangling", "loop", "device", "huge", "long name", "NUL")


def odd_file(how: str, path: Path) -> Path:
    """Put something in the place of a file that is none, and give the path."""
    path.unlink(missing_ok=True)
    if how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    elif how in ("dangling", "loop", "device"):
        path.symlink_to({"dangling": path.parent / "gone", "loop": path, "device": Path("/dev/zero")}[how])
    elif how == "huge":
        with path.open("wb") as file:
            file.truncate(2**42)  # holes
    return path.with_name({"long name": "x" * 300, "NUL": "a\0"}.get(how, path.name))


@pytest.mark.parametrize("how", ODD)
def test_what_is_no_file_is_no_image(how: str, tmp_path: Path, zero_shot: handful.FewShotClassifier):
    (tmp_path / "lamp").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "lamp" / "whole.png")
    path = odd_file(how, tmp_path / "lamp" / "odd.png")
    assert not decodes(path)
    with patience(), pytest.raises(handful.DataError, match="1 of 2"):
        zero_shot.predict([tmp_path / "lamp" / "whole.png", path])
    there = how not in ("nothing", "folder", "long name", "NUL")
    for verify in (True, False):
        with patience():
            report = handful.ImageSet.from_folder(
                tmp_path, on_error="skip", verify=verify or how == "huge"
            ).report
        assert (report.found, report.kept) == (1 + there, 1)


@pytest.mark.parametrize("how", ODD[:-2])
@pytest.mark.parametrize("file", ["head.json", "head.safetensors"])
def test_what_is_no_file_is_no_classifier(
    file: str, how: str, shelf: dict[str, Saved], tiny: handful.Backbone, tmp_path: Path
):
    shelf["zero-shot"].copied().write(tmp_path)
    odd_file(how, tmp_path / file)
    with patience(), pytest.raises(handful.CheckpointError):
        handful.load(tmp_path, backbone=tiny)


# -- what was found ----------------------------------------------------------------------------------


def refused(saved: Saved, folder: Path, backbone: handful.Backbone | None, match: str) -> None:
    """Loading it must end in an error that says so."""
    names = {"class_names": ["cat", "dog"]} if saved.alone else {}
    with pytest.raises(handful.HandfulError, match=match):
        handful.load(saved.write(folder), backbone=backbone, **names)


@pytest.mark.parametrize(
    "classes", [["lamp", None, "mug"], ["lamp", [1], "mug"], [0, 1, 2], [1, True, 3], {}]
)
def test_classes_are_the_names_or_their_integers(classes: Any, shelf, tiny: handful.Backbone, tmp_path: Path):
    saved = shelf["zero-shot"].copied()
    saved.facts["classes"] = classes
    refused(saved, tmp_path, tiny, "the same as classes")


@pytest.mark.parametrize("name", ["", "a\0", "../x\n", "x" * 1001, "LAMP", "\ud800", " lamp", 3])
def test_class_names_are_those_that_a_fit_accepts(name: Any, shelf, tiny: handful.Backbone, tmp_path: Path):
    saved = shelf["zero-shot"].copied()
    saved.facts["class_names"][1] = saved.facts["classes"][1] = name
    refused(saved, tmp_path, tiny, "lass name")


def test_many_class_names_are_checked_at_once():
    """Each was compared with every other: minutes for a hundred thousand."""
    with patience():
        assert len(check_names([f"class {number}" for number in range(100_000)])) == 100_000


@pytest.mark.parametrize("sha", ["\0", "\ud800", "/../../x", "", "A" * 64])
def test_the_hash_is_no_path(sha: str, shelf, tiny: handful.Backbone, tmp_path: Path):
    saved = shelf["zero-shot"].copied()
    saved.facts["tensors"], saved.stamp = sha, False
    refused(saved, tmp_path, tiny, "SHA-256")


def test_a_shape_beyond_integers(shelf, tiny: handful.Backbone, tmp_path: Path):
    header = json.dumps({"class_weights": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}})
    saved = shelf["zero-shot"].copied()
    saved.bytes_of["tensors"] = [lambda _: len(header).to_bytes(8, "little") + header.encode()]
    refused(saved, tmp_path, tiny, "no safetensors file")


def test_a_block_number_of_5000_digits(shelf, tmp_path: Path):
    saved = shelf["mma"].copied()
    saved.tensors["down.image." + "9" * 5000 + ".weight"] = torch.zeros(4, 32)
    saved.facts["backbone"] = {"name": None, "fingerprint": ""}
    refused(saved, tmp_path, None, "Got tensors")


def test_cocoop_refuses_a_tensor_too_many(shelf, tiny: handful.Backbone, tmp_path: Path):
    saved = shelf["cocoop"].copied()
    saved.tensors["class_weights"] = torch.zeros(3, 16)
    refused(saved, tmp_path, tiny, "Got tensors")


@pytest.mark.parametrize(
    ("kind", "key"), [("zero-shot", "scale"), ("tip-adapter", "alpha"), ("mma", "alpha")]
)
def test_numbers_that_float32_cannot_multiply(
    kind: str, key: str, shelf, tiny: handful.Backbone, tmp_path: Path
):
    saved = shelf[kind].copied()
    saved.facts["head"][key] = 1e300
    refused(saved, tmp_path, tiny, f"{key}=1e")


def test_weights_that_float32_cannot_multiply(shelf, tiny: handful.Backbone, tmp_path: Path):
    saved = shelf["linear-probe"].copied()
    saved.tensors["class_weights"] = torch.full((3, 16), -3e38)
    refused(saved, tmp_path, tiny, "beyond 1e")


def test_logits_that_are_no_numbers_name_no_class(shelf, tiny: handful.Backbone, probe: Any, tmp_path: Path):
    saved = shelf["logistic-probe"].copied()
    saved.tensors["weight"] = torch.full((3, 16), 9e29)
    clf = handful.load(saved.write(tmp_path), tiny)
    features = np.full((1, 16), 1e30, np.float32)
    for answer in (clf.predict, clf.predict_proba, clf.decision_function, clf.explain):
        with pytest.raises(handful.DataError, match="NaN or infinite"):
            answer(features)


def test_a_head_of_another_width_than_the_backbone(shelf, tiny: handful.Backbone, tmp_path: Path):
    saved = shelf["linear-probe"].copied()
    saved.tensors["class_weights"] = torch.ones(3, 15)
    refused(saved, tmp_path, tiny, "15 wide, expected 16")
    with pytest.raises(handful.DataError, match="one joint space"):
        handful.LogisticProbe(tiny).fit(np.eye(4, 7), [0, 0, 1, 1])


@pytest.mark.parametrize(("key", "value"), [("temperature", 1e-300), ("temperature", -1), ("means", 15)])
def test_a_calibration_that_fits_no_head(
    key: str, value: float, shelf, tiny: handful.Backbone, tmp_path: Path
):
    saved = shelf["tip-adapter"].copied()
    if key == "means":
        saved.tensors["calibration.means"] = torch.ones(3, 15)
    else:
        saved.facts["calibration"][key] = value
    refused(saved, tmp_path, tiny, key)


def test_fitted_on_features_and_loaded_with_a_backbone_it_can_be_saved(
    tiny: handful.Backbone, probe: Any, tmp_path: Path
):
    features = probe[1].values[:, 0].numpy()
    clf = handful.LogisticProbe(selection="fixed").fit(features, [0, 0, 1, 1, 2, 2])
    again = handful.load(clf.save(tmp_path / "a"), backbone=tiny)
    once_more = handful.load(again.save(tmp_path / "b"))
    np.testing.assert_array_equal(once_more.predict(features), clf.predict(features))


def test_file_names_that_are_no_unicode(tiny: handful.Backbone, two_classes: Path, tmp_path: Path):
    """As old archives leave them: names of Latin-1 in a system of UTF-8."""
    for folder in sorted(two_classes.iterdir()):
        for file in sorted(folder.iterdir()):
            file.rename(os.fsdecode(bytes(folder) + b"/caf\xe9 \xff" + file.name.encode()))
    images = handful.ImageSet.from_folder(two_classes)
    clf = handful.TipAdapter(tiny).fit(images)
    again = handful.load(clf.save(tmp_path / "saved"), backbone=tiny)
    assert again.support_ == clf.support_ == tuple(str(item) for item in images.items)
    assert "caf" in (tmp_path / "saved" / "README.md").read_text()
    line = {"error": f"DataError: {images.items[0]}", "name": "a\u2028b"}
    assert [json.loads(row) for row in as_lines([line, line]).decode().splitlines()] == [line, line]


def test_a_warning_about_an_image_may_be_an_error(tmp_path: Path):
    exif = Image.Exif()
    exif[0x010E] = "described"
    Image.new("RGB", (9, 9)).save(tmp_path / "a.jpg", exif=exif.tobytes()[:-20])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert decodes(tmp_path / "a.jpg")
    assert not decodes(tmp_path / "a.jpg")


def test_a_picture_of_no_numbers(tmp_path: Path):
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(handful.DataError, match="NaN or infinite"):
        decode(tmp_path / "a.tiff")


def test_whatever_a_reader_of_images_raises_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Pillow's reader of AVIF raises RuntimeError."""

    def load(_: Image.Image) -> None:
        raise RuntimeError("Conversion from YUV failed")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    (tmp_path / "a.png").write_bytes(pictures("PNG")[0])
    with pytest.raises(handful.DataError, match=r"a\.png: damaged or truncated"):
        decode(tmp_path / "a.png")

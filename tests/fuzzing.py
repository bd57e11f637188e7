"""Damaged classifiers and images, and how tests look at them."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load, save
from torch import Tensor

import handful
from handful.refiner import Refiner
from handful.schedule import seeded

TRIALS = int(os.environ.get("HANDFUL_FUZZ", "25"))

FIRST = int(os.environ.get("HANDFUL_FUZZ_FROM", "0"))

PATIENCE = 60
"""Seconds that one trial may take."""

FORMS: dict[str, dict[str, Any]] = {
    "auto": {},
    "zero-shot": {},
    "linear-probe": {"max_iter": 5},
    "logistic-probe": {"selection": "fixed"},
    "gda": {},
    "kernel-ridge": {},
    "ss-text": {},
    "tip-adapter": {},
    "tip-adapter-f": {"epochs": 1, "views": 0},
    "ape": {},
    "ape-t": {"epochs": 1, "views": 0},
    "tda": {},
    "meta-adapter": {},
    "clip-adapter": {"side": "both", "epochs": 1, "views": 0, "selection": "fixed"},
    "text-tuning": {"epochs": 1, "views": 0},
    "linear-adapter": {"max_iter": 5},
    "taskres": {"epochs": 1, "views": 0},
    "lp-plus-plus": {"epochs": 5},
    "cross-modal-probe": {"iterations": 5},
    "prolip": {"epochs": 3, "views": 0},
    "fine-tuning": {"epochs": 1, "views": 0},
    "coop": {"epochs": 1, "length": 2, "views": 0},
    "cocoop": {"epochs": 1, "batch_size": 8, "views": 0},
    "mma": {"epochs": 1, "views": 0, "width": 4},
}

CALIBRATED = ("auto", "tip-adapter", "clip-adapter")

ALONE = ("coop", "text-tuning", "clip-adapter", "linear-adapter", "prolip", "cocoop", "mma")
"""Whose learned tensors are saved alone too."""

CLASSES = ("lamp", "red panda", "mug")

DEEP = "stands for deep nesting"


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


def short(value: Any) -> str:
    """Write a value for a message."""
    text = repr(value)
    return text if len(text) < 60 else f"{text[:40]}... ({len(text)})"


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


def tell(kind: str, found: Counter[str], start: float) -> None:
    """Print the figures of a run."""
    print(f"{kind}: {found.total()} trials, {dict(found)}, {time.perf_counter() - start:.1f} s")

"""What is known of published data sets, read from `catalog.toml`."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from handful.errors import unexpected


@dataclass(frozen=True)
class Entry:
    """One published data set, as it lies on disk.

    Attributes
    ----------
    folder, images, split
        Below a root: the set's folder; in it, the folder of its images and the file of its split.
    counts
        Images of train, val and test as published; 0 where they are not counted.
    upstream
        What a user should know before looking for it.
    """

    name: str
    title: str
    kind: str
    folder: str
    images: str
    templates: str
    classes: int
    counts: tuple[int, int, int]
    upstream: str
    split: str = ""

    @property
    def layout(self) -> str:
        """What the set's folder should hold."""
        names = {"imagenet": " and classnames.txt", "imagenet-variant": " and classnames.txt"}
        split = f" and {self.split}" if self.split else names.get(self.kind, "")
        return f"{self.folder}/{self.images or '(its image folders)'}{split}"


@cache
def _table() -> dict[str, dict[str, Any]]:
    return tomllib.loads(files("handful.data").joinpath("catalog.toml").read_text("utf-8"))


@cache
def entries() -> dict[str, Entry]:
    """Published data sets by name."""
    found = {}
    for name, facts in _table()["datasets"].items():
        found[name] = Entry(name, **{**facts, "counts": tuple(facts["counts"])})
    return found


@cache
def template_sets() -> dict[str, tuple[str, ...]]:
    """Template sets by name: one for each data set of CoOp, and ensembles."""
    return {name: tuple(templates) for name, templates in _table()["templates"].items()}


def template_names() -> list[str]:
    """Give the names that `find_templates` knows, sorted."""
    return sorted([*template_sets(), "imagenet80"])


def find_templates(name: str) -> tuple[str, ...]:
    """Give the templates of a data set or ensemble by name; `imagenet80` is open_clip's list."""
    if name == "imagenet80":
        from open_clip import OPENAI_IMAGENET_TEMPLATES

        return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
    if name not in template_sets():
        raise unexpected("templates", name, f"one of {template_names()}")
    return template_sets()[name]

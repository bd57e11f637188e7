"""What is known of published data sets, read from `catalog.toml`."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files

from handful.errors import unexpected


@cache
def template_sets() -> dict[str, tuple[str, ...]]:
    """Template sets by name: one for each data set of CoOp, and ensembles."""
    table = tomllib.loads(files("handful.data").joinpath("catalog.toml").read_text())
    return {name: tuple(templates) for name, templates in table["templates"].items()}


def find_templates(name: str) -> tuple[str, ...]:
    """Give the templates of a data set or ensemble by name; `imagenet80` is open_clip's list."""
    if name == "imagenet80":
        from open_clip import OPENAI_IMAGENET_TEMPLATES

        return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
    known = template_sets()
    if name not in known:
        raise unexpected(
            "templates",
            name,
            f"a text with {{}}, a list of such, or one of {sorted([*known, 'imagenet80'])}",
        )
    return known[name]

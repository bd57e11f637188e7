"""Commands that ask a saved classifier about itself: explain and info."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from handful.cli.common import (
    AsJson,
    Megapixels,
    Model,
    OwnBackbone,
    OwnMethod,
    Weights,
    echo,
    echo_json,
    load_classifier,
)
from handful.summary import summary


def explain(
    model: Model,
    image: Annotated[Path | None, typer.Argument(help="An image to explain the prediction for.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many support images, or words.")] = 5,
    method: OwnMethod = None,
    backbone: OwnBackbone = None,
    weights: Weights = None,
    megapixels: Megapixels = None,
    as_json: AsJson = False,
) -> None:
    """Say why an image is given its class; without one, which words coop's or cocoop's context is near."""
    from dataclasses import asdict

    from handful.analysis.words import explain_context

    clf = load_classifier(model, method, backbone, weights)
    if image is not None:
        why = clf.explain(image, top)
        if as_json:
            echo_json(asdict(why))
        else:
            echo(str(why))
        return
    found = explain_context(clf, top)
    if as_json:
        words = {name: [[vars(word) for word in near] for near in own] for name, own in found.items()}
        echo_json({"contexts": words})
        return
    echo("nearest tokens of each context vector, with their Euclidean distance")
    for name, own in found.items():
        if name:
            echo(f"{name}:")
        for number, near in enumerate(own, 1):
            echo(f"{number:4}  {', '.join(map(str, near))}")


def info(
    model: Annotated[Path | None, typer.Argument(help="A folder that `handful fit` wrote.")] = None,
    as_json: AsJson = False,
) -> None:
    """Describe a saved classifier; without one, what this installation has."""
    if model is not None:
        from handful import checkpoint

        _, facts = checkpoint.read(model)
    else:
        from handful import METHODS, __version__, load_backbone
        from handful.features import cache_folder

        mini = load_backbone("mini")
        facts = {
            "handful": __version__,
            "methods": sorted(METHODS),
            "device": str(mini.device),
            "cache": str(cache_folder()),
            "mini": {"fingerprint": mini.fingerprint, "image_size": mini.image_size},
        }
    if as_json:
        echo_json(facts)
        return
    known = facts.get("selected")
    words = summary(known) if isinstance(known, dict) else {}
    for key, value in facts.items():
        if key == "selected" and words:
            echo("\n".join(f"{name}: {text}" for name, text in words.items()))
            continue
        if key == "digests":  # of hundreds of images, and nothing for people to read
            value = {name: f"{len(some)} images" for name, some in value.items()}
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        echo(f"{key}: {shown}")

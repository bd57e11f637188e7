"""Commands that ask a saved classifier: evaluate, explain and info."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from handful.cli.common import (
    AsJson,
    Data,
    Model,
    OnError,
    OwnBackbone,
    OwnMethod,
    Weights,
    load_classifier,
    say,
    use_images,
)


def evaluate(
    model: Model,
    folder: Data,
    record: Annotated[
        bool, typer.Option("--record", help="Write the score into the classifier and its card.")
    ] = False,
    method: OwnMethod = None,
    backbone: OwnBackbone = None,
    weights: Weights = None,
    on_error: OnError = "raise",
    as_json: AsJson = False,
) -> None:
    """Measure a classifier on labelled images, beside zero-shot."""
    from dataclasses import asdict

    from handful.evaluation import evaluate as measure

    clf = load_classifier(model, method, backbone, weights)
    found, _ = use_images(folder, on_error, lambda images: measure(clf, images))
    if record:
        own = found.record(model, folder)
        say(f"recorded in {model}" + ("" if own else ", but not in README.md, which a person changed"))
    if as_json:
        typer.echo(json.dumps(asdict(found), ensure_ascii=False))
        return
    typer.echo(f"accuracy {100 * found.accuracy:.2f} %   ({found.method}, selection: {found.selection})")
    typer.echo(f"zero-shot {100 * found.zero_shot:.2f} %   ({found.images} images, {found.classes} classes)")
    worst = sorted(found.per_class.items(), key=lambda item: item[1])[:5]
    typer.echo("worst classes: " + ", ".join(f"{name} {100 * value:.0f} %" for name, value in worst))


def explain(
    model: Model,
    image: Annotated[Path | None, typer.Argument(help="An image to explain the prediction for.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many support images, or words.")] = 5,
    method: OwnMethod = None,
    backbone: OwnBackbone = None,
    weights: Weights = None,
    as_json: AsJson = False,
) -> None:
    """Say why an image is given its class; without one, which words coop's or cocoop's context is near."""
    from dataclasses import asdict

    from handful.analysis.words import explain_context

    clf = load_classifier(model, method, backbone, weights)
    if image is not None:
        why = clf.explain(image, top)
        typer.echo(json.dumps(asdict(why), ensure_ascii=False) if as_json else str(why))
        return
    found = explain_context(clf, top)
    if as_json:
        words = {name: [[vars(word) for word in near] for near in own] for name, own in found.items()}
        typer.echo(json.dumps({"contexts": words}, ensure_ascii=False))
        return
    typer.echo("nearest tokens of each context vector, with their Euclidean distance")
    for name, own in found.items():
        if name:
            typer.echo(f"{name}:")
        for number, near in enumerate(own, 1):
            typer.echo(f"{number:4}  {', '.join(map(str, near))}")


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
        typer.echo(json.dumps(facts, ensure_ascii=False))
        return
    for key, value in facts.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        typer.echo(f"{key}: {shown}")

"""The command that measures a saved classifier on labelled images."""

from __future__ import annotations

import json
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

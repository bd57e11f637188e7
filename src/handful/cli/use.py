"""Commands that ask a saved classifier: predict, evaluate, explain and info."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from handful.cli.common import (
    AsJson,
    Data,
    Model,
    OnError,
    OwnBackbone,
    OwnMethod,
    Weights,
    echo,
    echo_json,
    load_classifier,
    say,
    use_images,
)


def predict(
    model: Model,
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    top: Annotated[int, typer.Option(min=1, help="How many classes to print for each image.")] = 1,
    unknown: Annotated[
        str, typer.Option(help="Call images unknown: auto, as calibrated, or below a probability, as 0.5.")
    ] = "",
    method: OwnMethod = None,
    backbone: OwnBackbone = None,
    weights: Weights = None,
    as_json: AsJson = False,
) -> None:
    """Say what is on images."""
    from handful.methods import read_value

    clf = load_classifier(model, method, backbone, weights)
    files, bad = _files(images), dict[int, str]()
    results: list[dict[str, Any]] = []
    for part, answer in clf.stream(files, read_value(unknown) if unknown else None):
        bad |= part.failures
        for place, row in enumerate(part.rows):
            shares, new = answer.probabilities[place], bool(answer.is_unknown[place])
            best = shares.argsort(descending=True, stable=True)[:top].tolist()
            classes: list[dict[str, Any]] = [
                {"class": str(clf.classes_[c]), "probability": round(float(shares[c]), 6)} for c in best
            ]
            result: dict[str, Any] = {"image": str(files[row]), "predictions": classes}
            results.append(result | ({"unknown": new} if unknown else {}))
            if not as_json:
                shown = ", ".join(f"{a['class']} {100 * a['probability']:.1f} %" for a in classes)
                typer.echo(f"{files[row]}: {'unknown, nearest ' if unknown and new else ''}{shown}")
    errors = [f"{files[row]}: {reason}" for row, reason in sorted(bad.items())]
    if as_json:
        typer.echo(json.dumps({"results": results, "errors": errors}, ensure_ascii=False))
    for reason in errors:
        say(f"error: {reason}")
    if bad:
        raise typer.Exit(1)


def _files(paths: list[Path]) -> list[Path]:
    """Give the files, and those in the folders, but for hidden ones."""
    inside = {
        path: [one for one in sorted(path.rglob("[!.]*")) if one.is_file()] for path in paths if path.is_dir()
    }
    return [one for path in paths for one in inside.get(path, [path])]


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
    for key, value in facts.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        echo(f"{key}: {shown}")

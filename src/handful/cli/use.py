"""Commands that ask a saved classifier: predict, explain and info."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    say,
)

if TYPE_CHECKING:
    from handful.data.looks import Look


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
    megapixels: Megapixels = None,
    as_json: AsJson = False,
) -> None:
    """Say what is on images."""
    from handful.data.looks import notes_on
    from handful.methods import read_value

    clf = load_classifier(model, method, backbone, weights)
    files, bad = _files(images), dict[int, str]()
    looks: dict[int, Look] = {}
    results: list[dict[str, Any]] = []
    for part, answer in clf.stream(files, read_value(unknown) if unknown else None):
        bad |= part.failures
        looks |= part.looks
        for place, row in enumerate(part.rows):
            shares, new = answer.probabilities[place], bool(answer.is_unknown[place])
            best = shares.argsort(descending=True, stable=True)[:top].tolist()
            classes: list[dict[str, Any]] = [
                {"class": clf.class_names_[c], "probability": round(float(shares[c]), 6)} for c in best
            ]
            result: dict[str, Any] = {"image": str(files[row]), "predictions": classes}
            results.append(result | ({"unknown": new} if unknown else {}))
            if not as_json:
                shown = ", ".join(f"{a['class']} {100 * a['probability']:.1f} %" for a in classes)
                typer.echo(f"{files[row]}: {'unknown, nearest ' if unknown and new else ''}{shown}")
    errors = [f"{files[row]}: {reason}" for row, reason in sorted(bad.items())]
    if as_json:
        typer.echo(json.dumps({"results": results, "errors": errors}, ensure_ascii=False))
    for note in notes_on(files, looks):
        say(f"note: {note}")
    for reason in errors:
        say(f"error: {reason}")
    if bad:
        raise typer.Exit(1)


def _files(paths: list[Path]) -> list[Path]:
    """Give the files, and the images in the folders; say what is passed over there."""
    from handful.data.folders import list_images

    files, passed = list_images(paths)
    for line in str(passed).splitlines():
        say(line)
    return files


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
    for key, value in facts.items():
        if key == "digests":  # of hundreds of images, and nothing for people to read
            value = {name: f"{len(some)} images" for name, some in value.items()}
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        echo(f"{key}: {shown}")

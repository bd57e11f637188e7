"""The command that classifies images of any number: predict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from handful.cli.common import AsJson, Model, OwnBackbone, OwnMethod, Weights, load_classifier, say


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

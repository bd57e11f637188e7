"""Commands that give a classifier away: push, pull and export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from handful.cli.common import Model, OwnBackbone, OwnMethod, Weights, echo, find_class

Repo = Annotated[str, typer.Argument(help="org/name on the Hugging Face hub, or a folder, as ./name.")]


def push(
    model: Model,
    repo: Repo,
    private: Annotated[bool, typer.Option("--private", help="Only you, or your org, may see it.")] = False,
) -> None:
    """Publish a saved classifier with its model card."""
    from handful.hub import push as push_to

    echo(f"{model}: pushed to {push_to(model, repo, private=private)}")


def pull(
    repo: Repo,
    out: Annotated[Path, typer.Option(help="A new folder, or a saved classifier to replace.")],
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit on the hub.")] = None,
) -> None:
    """Fetch a classifier that was pushed."""
    from handful.hub import pull as pull_from

    echo(f"{repo}: pulled to {pull_from(repo, out, revision=revision)}")


def export(
    model: Model,
    form: Annotated[str, typer.Option("--format", help="onnx.")] = "onnx",
    out: Annotated[Path, typer.Option(help="Where to write it.")] = Path("model.onnx"),
    method: OwnMethod = None,
    backbone: OwnBackbone = None,
    weights: Weights = None,
) -> None:
    """Write a classifier as one file that runs without handful: images in, probabilities out."""
    from handful import checkpoint, load
    from handful.backbones import reload_backbone
    from handful.errors import unexpected
    from handful.export import export_onnx, require_extra
    from handful.methods import reload_recorded

    if form != "onnx":
        raise unexpected("--format", form, "'onnx'")
    require_extra()
    exact = {"device": "cpu", "dtype": "float32"}
    name, found = checkpoint.read(model)[1]["backbone"].get("name") or "", None
    if backbone is not None or weights is not None:
        found = reload_backbone(name, backbone, weights, **exact)
    elif name:
        found = reload_recorded(name, **exact)
    clf = load(model, found, None if method is None else find_class(method))
    path = export_onnx(clf, out, echo)
    size = path.stat().st_size / 1e6
    echo(f"{path}: {clf.info()['method']}, {len(clf.class_names_)} classes, {size:.1f} MB")

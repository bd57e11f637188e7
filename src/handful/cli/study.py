"""Commands that study methods and backbones: bench, report and analyze."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from handful.cli.common import (
    AsJson,
    BackboneName,
    Megapixels,
    OnError,
    Weights,
    echo,
    echo_json,
    read_images,
    read_specs,
    say,
)
from handful.names import PROTOCOLS, SEEDS

analyze = typer.Typer(help="Look into a backbone.", no_args_is_help=True)


def bench(
    protocol: Annotated[str, typer.Argument(help=f"One of {', '.join(PROTOCOLS)}.")],
    data: Annotated[
        list[str],
        typer.Option(help="A name in the catalogue, or a path; repeatable. The first is learned on."),
    ],
    methods: Annotated[
        list[str] | None,
        typer.Option(
            help="A method, as tip-adapter:selection=support; repeatable, or one,two. Default: all."
        ),
    ] = None,
    shots: Annotated[str, typer.Option(help="Images per class, as in 1,4,16. Default: the protocol's.")] = "",
    seeds: Annotated[str, typer.Option(help="Draws, as in 1,2,3.")] = ",".join(map(str, SEEDS)),
    root: Annotated[Path | None, typer.Option(help="Where the catalogue's data sets lie.")] = None,
    backbone: BackboneName = "mini",
    weights: Weights = None,
    out: Annotated[
        Path, typer.Option(help="The folder of results; a run goes on with what is there.")
    ] = Path("handful-bench"),
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    megapixels: Megapixels = None,
    as_json: AsJson = False,
) -> None:
    """Run methods under a published protocol; kill it and start it again as you like."""
    from handful import METHODS
    from handful.bench import Bench, run_bench

    found = run_bench(
        Bench(
            protocol, tuple(data), tuple(read_specs(methods) or METHODS), out, backbone,
            None if weights is None else str(weights), None if root is None else str(root),
            _numbers("--shots", shots) or PROTOCOLS.get(protocol, (16,)),
            _numbers("--seeds", seeds),
        ),
        jobs,
    )  # fmt: skip
    errors = [line for line in found if "error" in line]
    facts = {
        "cells": len(found), "errors": len(errors), "skipped": sum("skipped" in line for line in found),
        "results": str(out / "results.jsonl"),
    }  # fmt: skip
    for line in errors:
        say(
            f"error: {line['data']}, {line['method']}, {line['shots']} shots, seed {line['seed']}: "
            f"{line['error']}"
        )
    if as_json:
        echo_json(facts)
    else:
        echo("\n".join(f"{k}: {v}" for k, v in facts.items()))
    if errors:
        raise typer.Exit(1)


def _numbers(name: str, text: str) -> tuple[int, ...]:
    """Read `1,4,16`."""
    try:
        return tuple(int(word) for word in text.split(",") if word.strip())
    except ValueError as error:
        raise typer.BadParameter(f"got {name} {text!r}, expected integers, as in 1,4,16") from error


def report(
    folder: Annotated[Path, typer.Argument(help="A folder that `handful bench` wrote.")],
    megapixels: Megapixels = None,
) -> None:
    """Write what a bench found as Markdown and as one HTML page."""
    from handful.report.page import write_report

    for path in write_report(folder):
        echo(str(path))


@analyze.command()
def layers(
    datasets: Annotated[
        list[Path], typer.Option(help="At least two training sets: folders of class folders, CSV or JSONL.")
    ],
    more: Annotated[list[Path] | None, typer.Argument(help="The others.", show_default=False)] = None,
    backbone: BackboneName = "mini",
    weights: Weights = None,
    images: Annotated[int, typer.Option(min=5, help="Images of each data set.")] = 160,
    out: Annotated[Path, typer.Option(help="Where to write picture and table.")] = Path("handful-layers"),
    on_error: OnError = "raise",
    megapixels: Megapixels = None,
    as_json: AsJson = False,
) -> None:
    """Measure how well each layer of both towers separates data sets, and how alike the towers are there."""
    from dataclasses import asdict

    from handful import load_backbone
    from handful.analysis.layers import analyze_layers, markdown, write_analysis
    from handful.errors import unexpected
    from handful.files import escaped

    paths = [path.absolute() for path in [*datasets, *(more or [])]]
    names = [path.name if path.is_dir() else path.stem for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path.parent.name}-{name}" for path, name in zip(paths, names, strict=True)]
    names = [escaped(name) for name in names]
    if len(set(names)) < len(names):
        raise unexpected("--datasets", names, "data sets whose folders have different names")
    read = {name: read_images(path, on_error) for name, path in zip(names, paths, strict=True)}
    found = analyze_layers(load_backbone(backbone, weights=weights), read, per_set=images)
    written = write_analysis(found, out)
    if as_json:
        echo_json(asdict(found))
    else:
        echo(markdown(found).rstrip("\n"))
    say(f"written: {', '.join(map(str, written))}")

"""The command that measures a saved classifier on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handful.cli.common import (
    AsJson,
    Data,
    Megapixels,
    Model,
    OnError,
    OwnBackbone,
    OwnMethod,
    Weights,
    console,
    echo,
    echo_json,
    list_files,
    load_classifier,
    say,
    use_images,
)

if TYPE_CHECKING:
    from handful.data import ImageSet
    from handful.evaluation import Evaluation
    from handful.evaluation.inputs import OtherClasses


def evaluate(
    model: Model,
    folder: Data,
    errors: Annotated[
        list[Path] | None,
        typer.Option(
            help="Write what is classified wrongly to FILE.json, .csv or .png (a contact sheet); repeatable."
        ),
    ] = None,
    unknown_folder: Annotated[
        Path | None,
        typer.Option(
            help="A folder of images of no class, flat or nested: measures the rule for unknown ones."
        ),
    ] = None,
    unknown: Annotated[
        str,
        typer.Option(
            help="The rule for unknown images: auto, as calibrated, or below a probability, as 0.5."
        ),
    ] = "",
    positive: Annotated[
        str | None, typer.Option(help="A class to measure against the rest; of two, the second by default.")
    ] = None,
    coverage: Annotated[
        float | None,
        typer.Option(help="Measure sets of classes at this coverage; 0.9 by default, if calibrated for it."),
    ] = None,
    by: Annotated[
        str,
        typer.Option(help="Whether the coverage holds over all images or in every class: all, class, auto."),
    ] = "all",
    per_class: Annotated[
        bool, typer.Option("--per-class", help="A line for each class, of however many there are.")
    ] = False,
    record: Annotated[
        bool, typer.Option("--record", help="Write the score into the classifier and its card.")
    ] = False,
    method: OwnMethod = None,
    backbone: OwnBackbone = None,
    weights: Weights = None,
    on_error: OnError = "raise",
    megapixels: Megapixels = None,
    as_json: AsJson = False,
) -> None:
    """Measure a classifier on labelled images, beside zero-shot.

    With --on-error skip, images of classes that the classifier does not know are left out; where the rule for
    unknown images is measured, they are images of no class.
    """
    from handful.data import use_readable
    from handful.evaluation import evaluate as measure
    from handful.methods import read_value
    from handful.report.mistakes import check_target, write_mistakes

    for path in errors or []:
        check_target(path)
    rule = read_value(unknown) if unknown else None
    outside = None if unknown_folder is None else unlabelled(unknown_folder)
    clf = load_classifier(model, method, backbone, weights)
    others: OtherClasses = (
        "raise" if on_error == "raise" else "skip" if rule is None and outside is None else "unknown"
    )

    def use(images: ImageSet, nowhere: ImageSet | None = None) -> Evaluation:
        return measure(
            clf, images, other_classes=others, unknown=rule, positive=positive,
            unknown_images=None if nowhere is None else nowhere.items, coverage=coverage, by=by,  # type: ignore[arg-type]
        )  # fmt: skip

    def use_both(images: ImageSet) -> Evaluation:
        nonlocal outside
        if outside is None:
            return use(images)
        found, outside = use_readable(outside, lambda some: use(images, some), on_error)  # type: ignore[arg-type]
        return found

    found, _ = use_images(folder, on_error, use_both)
    if outside is not None:
        say(f"{unknown_folder}: images of no class, {outside.report}")
    _print(found, as_json, per_class)
    for path in errors or []:
        write_mistakes(found, path)
        say(f"{len(found.errors)} images that are classified wrongly: {path}")
    if record:
        own = found.record(model, folder)
        say(f"recorded in {model}" + ("" if own else ", but not in README.md, which a person changed"))


def _print(found: Evaluation, as_json: bool, per_class: bool) -> None:
    from handful.report.scores import TABLE_UP_TO, class_table, rest_lines, score_lines

    if as_json:
        echo_json(found.facts())
        for note in found.notes:
            say(f"note: {note}")
    else:
        whole = per_class or len(found.class_scores) <= TABLE_UP_TO
        for line in (*score_lines(found), *(f"note: {note}" for note in found.notes)):
            echo(line)
        if whole:
            console().print(class_table(found))
        for line in rest_lines(found, whole):
            echo(line)


def unlabelled(folder: Path) -> ImageSet:
    """List the images of a folder without classes, at any depth; it passes over what `predict` does."""
    from handful.data import ImageSet, Report
    from handful.errors import unexpected

    if not folder.is_dir():
        raise unexpected("--unknown-folder", str(folder), "a folder of images that are of no class")
    files = list_files([folder])
    return ImageSet(tuple(files), [0] * len(files), ("no class",), Report(len(files), len(files)))  # type: ignore[arg-type]

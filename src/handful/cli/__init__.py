"""The command line: `handful demo | fit | meta-train | predict | evaluate | explain | push | pull |
bench | report | compare | analyze | info | export`.

Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 it failed, 2 the call was
wrong, 130 interrupted. Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from handful.backbones import Backbone
    from handful.data import ImageSet

app = typer.Typer(
    name="handful",
    help="Teach a CLIP model your classes from a handful of images.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[Path, typer.Argument(help="A folder that `handful fit` wrote.")]
Data = Annotated[
    Path, typer.Argument(help="A folder of class folders, or a CSV or JSONL with path and label.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
OnError = Annotated[str, typer.Option(help="What bad files do: raise, or skip with a report.")]


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _read(data: Path, on_error: str) -> ImageSet:
    from handful.data import ImageSet
    from handful.errors import unexpected

    if on_error not in ("raise", "skip"):
        raise unexpected("on_error", on_error, "'raise' or 'skip'")
    read = ImageSet.from_folder if data.is_dir() or not data.suffix else ImageSet.from_table
    images = read(data, on_error="skip" if on_error == "skip" else "raise")
    count = len(images.class_names)
    _say(f"{data}: {count} class{'es' * (count != 1)}, {images.report}")
    return images


def _read_classes(folder: Path, on_error: str) -> ImageSet:
    """Read what is learned from: at least two classes."""
    from handful.errors import DataError

    images = _read(folder, on_error)
    if len(images.class_names) < 2:
        raise DataError(
            f"{folder} holds one class, {images.class_names[0]!r}, expected at least two: whatever is asked "
            "about, a classifier of one class says that one. Add a folder of other images."
        )
    return images


def _free(out: Path) -> None:
    """Refuse a folder that holds anything but a saved classifier, before any work."""
    from handful.checkpoint import check_place

    check_place(out)
    if (out / "head.json").exists():
        _say(f"note: {out} holds a classifier, which will be replaced")


def _load(backbone: str, weights: Path | None) -> Backbone:
    """Load a backbone, and say so if it is one to try things with."""
    from handful import load_backbone

    if backbone == "mini":
        _say("note: backbone mini is a demonstration model; for real work, --backbone ViT-B-16/openai")
    return load_backbone(backbone, weights=weights)


def _specs(methods: list[str]) -> list[str]:
    """Read methods that are given one at a time, or as `one,two`."""
    return [one for spec in methods for one in (spec.split(",") if ":" not in spec else [spec]) if one]


def _files(paths: list[Path]) -> list[Path]:
    """Give the files, and those in the folders, but for hidden ones."""
    inside = {
        path: [one for one in sorted(path.rglob("[!.]*")) if one.is_file()] for path in paths if path.is_dir()
    }
    return [one for path in paths for one in inside.get(path, [path])]


def _parameters(pairs: list[str]) -> dict[str, Any]:
    """Read `name=value`, the value as JSON where it is, as a word where it isn't."""
    from handful.methods import read_value

    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise typer.BadParameter(f"got {pair!r}, expected name=value, as in alpha=2.0")
        found[name] = read_value(value)
    return found


def _numbers(name: str, text: str) -> tuple[int, ...]:
    """Read `1,4,16`."""
    try:
        return tuple(int(word) for word in text.split(",") if word.strip())
    except ValueError as error:
        raise typer.BadParameter(f"got {name} {text!r}, expected integers, as in 1,4,16") from error


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where to write images, picture and classifier.")] = Path(
        "handful-demo"
    ),
) -> None:
    """Compare the quick methods on real handwritten digits, offline, in a minute."""
    from rich.console import Console

    from handful.cli.tour import run_demo
    from handful.errors import unexpected

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unexpected("--out", str(out), f"a folder that can be written ({error.strerror})") from error
    run_demo(out, Console(width=None if sys.stdout.isatty() else 110), _say)


@app.command()
def fit(
    folder: Data,
    method: Annotated[
        str,
        typer.Option(
            help="zero-shot, linear-probe, logistic-probe, tip-adapter, tip-adapter-f, clip-adapter, "
            "meta-adapter, text-tuning, fine-tuning, coop, cocoop, mma, or pkg.module:Class."
        ),
    ] = "tip-adapter",
    backbone: Annotated[
        str, typer.Option(help="mini, model/tag, hf-hub:org/name, or a config.json.")
    ] = "mini",
    weights: Annotated[Path | None, typer.Option(help="The weights, for a config.json.")] = None,
    shots: Annotated[
        int | None, typer.Option(min=1, help="Draw this many images per class; all by default.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Which draw: CoOp's for this seed.")] = 1,
    validation: Annotated[
        Path | None, typer.Option(help="Labelled images for -p selection=val (the test set for oracle).")
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", "-p", help="A parameter of the method, name=value; repeatable."),
    ] = None,
    calibrate: Annotated[
        float | None,
        typer.Option(
            help="Calibrate probabilities inside the support set, and call images unknown at this "
            "false-alarm rate, as 0.05."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where to save the classifier.")] = Path("handful-model"),
    on_error: OnError = "raise",
    as_json: AsJson = False,
) -> None:
    """Learn classes from images, and save the classifier."""
    import time

    from handful import few_shot
    from handful.errors import Interrupted, unexpected
    from handful.methods import find_method

    cls = find_method(method)
    parameters = _parameters(param or [])
    known = sorted(set(cls._get_param_names()) - {"backbone"})
    for name in parameters:
        if name not in known:
            raise unexpected("--param", name, f"a parameter of {method}: {known}")
    _free(out)
    images = _read_classes(folder, on_error)
    support = few_shot(images, shots, seed) if shots else images
    model = _load(backbone, weights)
    start = time.perf_counter()
    seen = None if validation is None else _read(validation, on_error)
    clf = cls(model, **parameters)
    try:
        clf.fit(support, validation=seen)
    except Interrupted as stopped:
        clf.save(out)
        _say(f"{stopped} {out} holds it.")
        raise typer.Exit(130) from None
    seconds = time.perf_counter() - start
    if shots:
        clf.draw_ = {"data": folder.absolute().name, "shots": shots, "seed": seed}
    if calibrate is not None:
        given: dict[str, Any] = {} if seen is None else {"validation": seen}
        clf.calibrate(support, false_alarm=calibrate, **given)
    clf.save(out)
    for note in clf.notes_:
        _say(f"note: {note}")
    facts = {
        "model": str(out),
        "method": method,
        "images": len(support),
        "classes": len(clf.class_names_),
        "selection": clf.selection_,
        "selected": clf.selected_,
        "seconds": round(seconds, 2),
        **({"calibration": clf.calibration_.facts()} if clf.calibration_ else {}),
    }
    typer.echo(json.dumps(facts) if as_json else "\n".join(f"{k}: {_plain(v)}" for k, v in facts.items()))
    _say(f"next: handful evaluate {out} TEST_FOLDER, handful predict {out} IMAGE")


def _plain(value: object) -> str:
    """Write a value for people: what is inside of it one after the other, numbers of four digits."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(inside)}" for name, inside in value.items()) or "nothing"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@app.command()
def meta_train(
    folder: Data,
    backbone: Annotated[str, typer.Option(help="As for fit.")] = "mini",
    weights: Annotated[Path | None, typer.Option(help="The weights, for a config.json.")] = None,
    regime: Annotated[str, typer.Option(help="episodic (ours) or published.")] = "episodic",
    shots: Annotated[int, typer.Option(min=1, help="Support images of a class, at most.")] = 16,
    epochs: Annotated[int, typer.Option(min=1)] = 5,
    lr: Annotated[float, typer.Option()] = 1e-4,
    seed: Annotated[int, typer.Option()] = 0,
    out: Annotated[Path, typer.Option(help="Where to save the network.")] = Path("meta_adapter.safetensors"),
    on_error: OnError = "raise",
) -> None:
    """Train Meta-Adapter's network once, for `fit --method meta-adapter -p refiner=FILE` on any classes."""
    from handful import load_backbone
    from handful import meta_train as train

    images = _read(folder, on_error)
    model = load_backbone(backbone, weights=weights)
    refiner = train(model, images, regime=regime, shots=shots, epochs=epochs, lr=lr, seed=seed)  # type: ignore[arg-type]
    refiner.save(out)
    typer.echo(f"{out}: trained on {len(images)} images, last loss {refiner.facts['training']['loss']:.4f}")


@app.command()
def predict(
    model: Model,
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    top: Annotated[int, typer.Option(min=1, help="How many classes to print for each image.")] = 1,
    unknown: Annotated[
        str, typer.Option(help="Call images unknown: auto, as calibrated, or below a probability, as 0.5.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Say what is on images."""
    from handful import load
    from handful.data import decode
    from handful.errors import DataError
    from handful.methods import read_value

    clf = load(model)
    good: list[Path] = []
    bad: list[str] = []
    results: list[dict[str, Any]] = []
    for path in _files(images):
        try:
            decode(path)
            good.append(path)
        except DataError as error:
            bad.append(str(error))
    if good:
        found, strange = clf.tell(good, read_value(unknown) if unknown else None)
        for path, row, new in zip(good, found, strange.tolist(), strict=True):
            order = row.argsort()[::-1][:top]
            answers = [{"class": str(clf.classes_[c]), "probability": round(float(row[c]), 6)} for c in order]
            result: dict[str, Any] = {"image": str(path), "predictions": answers}
            results.append(result | ({"unknown": new} if unknown else {}))
    if as_json:
        typer.echo(json.dumps({"results": results, "errors": bad}, ensure_ascii=False))
    else:
        for result in results:
            shown = ", ".join(f"{a['class']} {100 * a['probability']:.1f} %" for a in result["predictions"])
            word = "unknown, nearest " if result.get("unknown") else ""
            typer.echo(f"{result['image']}: {word}{shown}")
    for error_text in bad:
        _say(f"error: {error_text}")
    if bad:
        raise typer.Exit(1)


@app.command()
def evaluate(
    model: Model,
    folder: Data,
    record: Annotated[
        bool, typer.Option("--record", help="Write the score into the classifier and its card.")
    ] = False,
    on_error: OnError = "raise",
    as_json: AsJson = False,
) -> None:
    """Measure a classifier on labelled images, beside zero-shot."""
    import numpy as np

    from handful import ZeroShot, load
    from handful.metrics import accuracy, per_class_accuracy

    clf = load(model)
    images = _read(folder, on_error)
    truth = clf.match(images.class_names)[images.labels]
    backbone = clf.loaded_backbone()
    predicted = clf.decision_function(images).argmax(1)
    templates = getattr(clf, "templates", "default")
    zero = ZeroShot(backbone, templates=templates).fit(class_names=clf.class_names_)
    by_class = per_class_accuracy(predicted, truth, len(clf.class_names_))
    facts: dict[str, Any] = {
        "accuracy": accuracy(predicted, truth),
        "zero_shot": accuracy(zero.decision_function(images).argmax(1), truth),
        "images": len(images),
        "classes": len(clf.class_names_),
        "method": clf.method,
        "selection": clf.selection_,
        "per_class": {
            name: float(value)
            for name, value in zip(clf.class_names_, by_class, strict=True)
            if not np.isnan(value)
        },
    }
    if record:
        _record(model, folder, facts)
    if as_json:
        typer.echo(json.dumps(facts, ensure_ascii=False))
        return
    typer.echo(f"accuracy {100 * facts['accuracy']:.2f} %   ({clf.method}, selection: {clf.selection_})")
    typer.echo(
        f"zero-shot {100 * facts['zero_shot']:.2f} %   ({len(images)} images, {facts['classes']} classes)"
    )
    worst = sorted(facts["per_class"].items(), key=lambda item: item[1])[:5]
    typer.echo("worst classes: " + ", ".join(f"{name} {100 * value:.0f} %" for name, value in worst))


def _record(model: Path, data: Path, facts: dict[str, Any]) -> None:
    """Write a score into a saved classifier; the data by the last two parts of its path."""
    import datetime

    from handful.checkpoint import record_score

    score = {name: facts[name] for name in ("images", "accuracy", "zero_shot")}
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    called = "/".join(data.absolute().parts[-2:])
    own = record_score(model, {"data": called, **score, "date": today})
    _say(f"recorded in {model}" + ("" if own else ", but not in README.md, which a person changed"))


@app.command()
def explain(
    model: Model,
    image: Annotated[Path | None, typer.Argument(help="An image to say the decision on.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many support images, or words.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Say why an image is told as it is; without one, which words coop's or cocoop's context is near."""
    from dataclasses import asdict

    from handful import load
    from handful.analysis.words import explain_context

    clf = load(model)
    if image is not None:
        why = clf.explain(image, top)
        typer.echo(json.dumps(asdict(why), ensure_ascii=False) if as_json else str(why))
        return
    found = explain_context(clf, top)
    if as_json:
        plain = {name: [[vars(word) for word in near] for near in own] for name, own in found.items()}
        typer.echo(json.dumps({"contexts": plain}, ensure_ascii=False))
        return
    typer.echo("nearest tokens of each context vector, with their Euclidean distance")
    for name, own in found.items():
        if name:
            typer.echo(f"{name}:")
        for number, near in enumerate(own, 1):
            typer.echo(f"{number:4}  {', '.join(map(str, near))}")


@app.command()
def push(
    model: Model,
    repo: Annotated[str, typer.Argument(help="org/name on the Hugging Face hub, or a folder, as ./name.")],
    private: Annotated[bool, typer.Option("--private", help="Only you, or your org, may see it.")] = False,
) -> None:
    """Publish a saved classifier with its model card."""
    from handful.hub import push as push_to

    typer.echo(f"{model}: pushed to {push_to(model, repo, private=private)}")


@app.command()
def pull(
    repo: Annotated[str, typer.Argument(help="org/name on the Hugging Face hub, or a folder, as ./name.")],
    out: Annotated[Path, typer.Option(help="A new folder, or a saved classifier to replace.")],
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit on the hub.")] = None,
) -> None:
    """Fetch a classifier that was pushed."""
    from handful.hub import pull as pull_from

    typer.echo(f"{repo}: pulled to {pull_from(repo, out, revision=revision)}")


@app.command()
def bench(
    protocol: Annotated[
        str, typer.Argument(help="few-shot, base-to-new, cross-dataset, domain-shift or cross-category.")
    ],
    data: Annotated[
        list[str],
        typer.Option(help="A name in the catalogue, or a path; repeatable. The first is learned on."),
    ],
    methods: Annotated[
        list[str] | None,
        typer.Option(help="A method, as tip-adapter:selection=support; repeatable. Default: all."),
    ] = None,
    shots: Annotated[str, typer.Option(help="Images per class, as in 1,4,16. Default: the protocol's.")] = "",
    seeds: Annotated[str, typer.Option(help="Draws, as in 1,2,3.")] = "1,2,3",
    root: Annotated[Path | None, typer.Option(help="Where the catalogue's data sets lie.")] = None,
    backbone: Annotated[str, typer.Option(help="As for fit.")] = "mini",
    weights: Annotated[Path | None, typer.Option(help="The weights, for a config.json.")] = None,
    out: Annotated[
        Path, typer.Option(help="The folder of results; a run goes on with what is there.")
    ] = Path("handful-bench"),
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Run methods under a published protocol; kill it and start it again as you like."""
    from handful import METHODS
    from handful.bench import Bench, run_bench
    from handful.metrics import SHOTS

    found = run_bench(
        Bench(
            protocol, tuple(data), tuple(_specs(methods or []) or METHODS), out, backbone,
            None if weights is None else str(weights), None if root is None else str(root),
            _numbers("--shots", shots) or (SHOTS if protocol == "few-shot" else (16,)),
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
        _say(
            f"error: {line['data']}, {line['method']}, {line['shots']} shots, seed {line['seed']}: "
            f"{line['error']}"
        )
    typer.echo(json.dumps(facts) if as_json else "\n".join(f"{k}: {v}" for k, v in facts.items()))
    if errors:
        raise typer.Exit(1)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A folder that `handful bench` wrote.")],
) -> None:
    """Write what a bench found as Markdown and as one HTML page."""
    from handful.report.page import write_report

    for path in write_report(folder):
        typer.echo(str(path))


@app.command()
def compare(
    folder: Data,
    methods: Annotated[
        list[str] | None, typer.Option(help="A method; repeatable. Default: all that take seconds.")
    ] = None,
    backbone: Annotated[str, typer.Option(help="As for fit.")] = "mini",
    weights: Annotated[Path | None, typer.Option(help="The weights, for a config.json.")] = None,
    folds: Annotated[int, typer.Option(min=2, help="At most; as many as the smallest class has images.")] = 4,
    repeats: Annotated[int, typer.Option(min=1, help="How often, with other folds.")] = 3,
    fit_best: Annotated[
        bool, typer.Option("--fit-best", help="Fit the best on all images, and save it.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Where to save it.")] = Path("handful-model"),
    on_error: OnError = "raise",
    as_json: AsJson = False,
) -> None:
    """Say which method to take for these images, and whether it beats zero-shot; no test set needed."""
    from dataclasses import asdict

    from rich.console import Console

    from handful.compare import compare as compare_methods
    from handful.compare import sensible
    from handful.methods import find_method
    from handful.report import comparison_table

    if fit_best:
        _free(out)
    names = _specs(methods or []) or None
    for name in names or ():
        find_method(name)
    images = _read_classes(folder, on_error)
    ways = sensible(_load(backbone, weights), names)
    found = compare_methods(ways, images, count=folds, repeats=repeats, progress=_say)
    if fit_best:
        ways[found.best].fit(images).save(out)
        _say(f"{found.best}, fitted on all {len(images)} images: {out}")
    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    Console(width=None if sys.stdout.isatty() else 110).print(comparison_table(found))
    typer.echo(found.advice)


@app.command()
def serve(
    models: Annotated[
        list[Path] | None, typer.Argument(help="Saved classifiers; none: only the page.", show_default=False)
    ] = None,
    backbone: Annotated[str, typer.Option(help="For the page, where no classifier says which.")] = "mini",
    weights: Annotated[Path | None, typer.Option(help="The weights, for a config.json.")] = None,
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    token: Annotated[
        str, typer.Option(envvar="HANDFUL_TOKEN", help="What clients must send: Authorization: Bearer TOKEN.")
    ] = "",
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Another name the server may be called by; repeatable.")
    ] = None,
    body_mb: Annotated[int, typer.Option(min=1, help="Megabytes of a request, at most.")] = 32,
    megapixels: Annotated[float, typer.Option(min=0.01, help="Of an image, at most.")] = 40,
    waiting: Annotated[int, typer.Option(min=1, help="Images on their way, at most; then 429.")] = 256,
    seconds: Annotated[float, typer.Option(min=0.1, help="Until a request is given up.")] = 30,
) -> None:
    """Serve classifiers over HTTP, and a page to make one; stdout says where."""
    from handful.errors import ParameterError

    try:
        from handful.serve import Limits, run
    except ModuleNotFoundError as error:
        raise ParameterError(
            f'Serving needs {error.name}, which is not installed: pip install "handful[serve]".'
        ) from error
    limits = Limits(body_mb * 2**20, pixels=int(megapixels * 1e6), waiting=waiting, seconds=seconds)
    run(models or [], backbone, weights, host, port, token or None, allow_host or (), limits)


analyze = typer.Typer(help="Look into a backbone.", no_args_is_help=True)
app.add_typer(analyze, name="analyze")


@analyze.command()
def layers(
    datasets: Annotated[
        list[Path], typer.Option(help="At least two training sets: folders of class folders, CSV or JSONL.")
    ],
    more: Annotated[list[Path] | None, typer.Argument(help="The others.", show_default=False)] = None,
    backbone: Annotated[str, typer.Option(help="As for fit.")] = "mini",
    weights: Annotated[Path | None, typer.Option(help="The weights, for a config.json.")] = None,
    images: Annotated[int, typer.Option(min=5, help="Images of each data set.")] = 160,
    out: Annotated[Path, typer.Option(help="Where to write picture and table.")] = Path("handful-layers"),
    on_error: OnError = "raise",
    as_json: AsJson = False,
) -> None:
    """Say how well each layer of both towers tells data sets apart, and how alike the towers are there."""
    from handful import load_backbone
    from handful.analysis.layers import analyze_layers, markdown, write_analysis
    from handful.errors import unexpected

    paths = [*datasets, *(more or [])]
    paths = [path.absolute() for path in paths]
    names = [path.name if path.is_dir() else path.stem for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path.parent.name}-{name}" for path, name in zip(paths, names, strict=True)]
    if len(set(names)) < len(names):
        raise unexpected("--datasets", names, "data sets whose folders have different names")
    read = {name: _read(path, on_error) for name, path in zip(names, paths, strict=True)}
    found = analyze_layers(load_backbone(backbone, weights=weights), read, per_set=images)
    written = write_analysis(found, out)
    typer.echo(written[0].read_text() if as_json else markdown(found), nl=False)
    _say(f"written: {', '.join(map(str, written))}")


@app.command()
def info(
    model: Annotated[Path | None, typer.Argument(help="A folder that `handful fit` wrote.")] = None,
    as_json: AsJson = False,
) -> None:
    """Tell what a saved classifier is; without one, what this installation has."""
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


@app.command()
def export(
    model: Model,
    form: Annotated[str, typer.Option("--format", help="onnx.")] = "onnx",
    out: Annotated[Path, typer.Option(help="Where to write it.")] = Path("model.onnx"),
) -> None:
    """Write a classifier as one file that runs without handful: images in, probabilities out."""
    from handful import checkpoint, load
    from handful.backbones import reload_backbone
    from handful.errors import unexpected
    from handful.export import export_onnx, require_extra

    if form != "onnx":
        raise unexpected("--format", form, "'onnx'")
    require_extra()
    name = checkpoint.read(model)[1]["backbone"].get("name")
    clf = load(model, reload_backbone(name, "cpu", "float32") if isinstance(name, str) else None)
    path = export_onnx(clf, out, typer.echo)
    size = path.stat().st_size / 1e6
    typer.echo(f"{path}: {clf.method}, {len(clf.class_names_)} classes, {size:.1f} MB")


def main() -> None:
    """Run the command line, and turn errors into one line and an exit code."""
    from handful.errors import HandfulError

    warnings.showwarning = lambda message, *_, **__: _say(f"warning: {message}")
    try:
        app(prog_name="handful")
    except HandfulError as error:
        _say(f"error: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        _say("interrupted")
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)

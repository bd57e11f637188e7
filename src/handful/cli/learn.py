"""Commands that learn: demo, fit, meta-train and compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handful.cli.common import (
    AsJson,
    BackboneName,
    Data,
    Megapixels,
    OnError,
    Weights,
    check_file,
    console,
    echo,
    echo_json,
    find_class,
    plain,
    read_specs,
    say,
    use_images,
)
from handful.errors import counted
from handful.names import METHODS
from handful.summary import summary

if TYPE_CHECKING:
    from handful.backbones import Backbone
    from handful.compare import Comparison
    from handful.data import ImageSet
    from handful.estimator import FewShotClassifier
    from handful.refiner import Refiner


def demo(
    out: Annotated[Path, typer.Option(help="Where to write images, results, picture and classifier.")] = Path(
        "handful-demo"
    ),
) -> None:
    """Bench the quick methods on real handwritten digits, offline, in a minute."""
    from handful.cli.tour import run_demo
    from handful.errors import unexpected

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unexpected("--out", str(out), f"a folder that can be written ({error.strerror})") from error
    run_demo(out, console(), say)


def fit(
    folder: Data,
    method: Annotated[str, typer.Option(help=f"{', '.join(METHODS)}, or pkg.module:Class.")] = "auto",
    backbone: BackboneName = "mini",
    weights: Weights = None,
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
    templates: Annotated[
        str | None,
        typer.Option(
            help="What is said of a class name: a text with {} or {class}, a .txt with one a line, a .json "
            "of these or of prompts by class, or a name such as imagenet7."
        ),
    ] = None,
    calibrate: Annotated[
        float | None,
        typer.Option(
            help="Calibrate probabilities and sets of classes inside the support set, and call images "
            "unknown at this false-alarm rate, as 0.05."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where to save the classifier.")] = Path("handful-model"),
    on_error: OnError = "raise",
    megapixels: Megapixels = None,
    as_json: AsJson = False,
) -> None:
    """Learn classes from images, and save the classifier."""
    import time
    from dataclasses import replace

    from handful import few_shot
    from handful.errors import Interrupted
    from handful.estimator.calibrating import check_rate, check_shots

    cls = find_class(method)
    parameters = _parameters(cls, method, param or [])
    if templates is not None:
        parameters |= _templates(cls, method, templates, parameters)
    if calibrate is not None:
        check_rate("--calibrate", calibrate)
    _check_free(out)
    clf = cls(_load_backbone(backbone, weights), **parameters)
    start = time.perf_counter()

    def learn(images: ImageSet) -> tuple[ImageSet, ImageSet | None]:
        support = few_shot(_check_classes(folder, images), shots, seed) if shots else images
        _check_classes(folder, support)
        if calibrate is not None:
            check_shots(support.labels, support.class_names)
        if validation is None:
            clf.fit(support)
            return support, None
        return support, use_images(validation, on_error, lambda seen: clf.fit(support, validation=seen))[1]

    try:
        (support, seen), _ = use_images(folder, on_error, learn)
    except Interrupted as stopped:
        clf.save(out)
        say(f"{stopped} {out} holds it.")
        raise typer.Exit(130) from None
    seconds = time.perf_counter() - start
    if shots:
        drawn = {"data": folder.absolute().name, "shots": shots, "seed": seed}
        clf.fitted_ = replace(clf.fitted_, draw=drawn)
    clf.save(out)
    if calibrate is not None:
        _calibrate(clf, support, seen, calibrate, out)
    _print_fit(clf, {"model": str(out), "method": method, "images": len(support)}, seconds, as_json)
    say(f"next: handful evaluate {out} TEST_FOLDER, handful predict {out} IMAGE")


def _calibrate(
    clf: FewShotClassifier, support: ImageSet, validation: ImageSet | None, rate: float, out: Path
) -> None:
    """Calibrate a fit that is saved already, and save it again; if that fails, say that nothing is lost."""
    given: dict[str, Any] = {} if validation is None else {"validation": validation}
    try:
        clf.calibrate(support, false_alarm=rate, **given)
    except BaseException:
        by_fit = ", not calibrated" if clf.calibration_ is None else ""
        say(f"{out} holds the classifier as it was fitted{by_fit}.")
        raise
    clf.save(out)


def _print_fit(clf: FewShotClassifier, facts: dict[str, Any], seconds: float, as_json: bool) -> None:
    """Print what a fit found out; its notes go to stderr."""
    for note in clf.notes_:
        say(f"note: {note}")
    facts = {
        **facts,
        "classes": len(clf.class_names_),
        "images_per_class": [min(clf.shots_), max(clf.shots_)],
        "selection": clf.selection_,
        "selected": clf.selected_,
        "seconds": round(seconds, 2),
        **({"calibration": clf.calibration_.facts()} if clf.calibration_ else {}),
    }
    if as_json:
        echo_json(facts)
        return
    least, most = facts["images_per_class"]
    facts["images_per_class"] = least if least == most else f"{least} to {most}"
    if words := summary(clf.selected_):
        facts = {key: value for key, value in facts.items() if key != "selected"} | words
    echo("\n".join(f"{k}: {plain(v)}" for k, v in facts.items()))


def meta_train(
    folder: Data,
    backbone: BackboneName = "mini",
    weights: Weights = None,
    regime: Annotated[str, typer.Option(help="episodic (ours) or published.")] = "episodic",
    shots: Annotated[int, typer.Option(min=1, help="Support images of a class, at most.")] = 16,
    epochs: Annotated[int, typer.Option(min=1)] = 5,
    lr: Annotated[float, typer.Option()] = 1e-4,
    seed: Annotated[int, typer.Option()] = 0,
    out: Annotated[Path, typer.Option(help="Where to save the network.")] = Path("meta_adapter.safetensors"),
    on_error: OnError = "raise",
    megapixels: Megapixels = None,
) -> None:
    """Train Meta-Adapter's network once, for `fit --method meta-adapter -p refiner=FILE` on any classes."""
    from handful import load_backbone
    from handful import meta_train as train

    check_file(out)
    model = load_backbone(backbone, weights=weights)

    def learn(images: ImageSet) -> Refiner:
        return train(model, images, regime=regime, shots=shots, epochs=epochs, lr=lr, seed=seed)  # type: ignore[arg-type]

    refiner, images = use_images(folder, on_error, learn)
    refiner.save(out)
    echo(f"{out}: trained on {counted(len(images))}, last loss {refiner.facts['training']['loss']:.4f}")


def compare(
    folder: Data,
    methods: Annotated[
        list[str] | None,
        typer.Option(help="A method; repeatable, or one,two. Default: auto, and the best that take seconds."),
    ] = None,
    backbone: BackboneName = "mini",
    weights: Weights = None,
    folds: Annotated[int, typer.Option(min=2, help="At most; as many as the largest class has images.")] = 16,
    repeats: Annotated[
        int | None, typer.Option(min=1, help="How often, with other folds. Default: as makes 12 fits.")
    ] = None,
    fit_best: Annotated[
        bool, typer.Option("--fit-best", help="Fit the best on all images, and save it.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Where to save it.")] = Path("handful-model"),
    on_error: OnError = "raise",
    megapixels: Megapixels = None,
    as_json: AsJson = False,
) -> None:
    """Say which method to take for these images, and whether it beats zero-shot; no test set needed."""
    from dataclasses import asdict

    from handful.compare import compare as compare_methods
    from handful.compare import sensible
    from handful.report import comparison_table

    if fit_best:
        _check_free(out)
    names = read_specs(methods)
    for name in names:
        find_class(name)
    candidates = sensible(_load_backbone(backbone, weights), names or None)

    def choose(images: ImageSet) -> Comparison:
        chosen = _check_classes(folder, images)
        return compare_methods(candidates, chosen, count=folds, repeats=repeats, progress=say)

    found, images = use_images(folder, on_error, choose)
    for note in found.notes:
        say(f"note: {note}")
    if fit_best:
        candidates[found.best].fit(images).save(out)
        say(f"{found.best}, fitted on all {len(images)} images: {out}")
    if as_json:
        echo_json(asdict(found))
        return
    console().print(comparison_table(found))
    echo(found.advice)


def _check_classes(folder: Path, images: ImageSet) -> ImageSet:
    """Refuse to learn one class."""
    from handful.errors import DataError

    if len(images.class_names) < 2:
        raise DataError(
            f"{folder} holds one class, {images.class_names[0]!r}, expected at least two: whatever is asked "
            "about, a classifier of one class says that one. Add a folder of other images."
        )
    return images


def _check_free(out: Path) -> None:
    """Refuse a folder that holds anything but a saved classifier, before any work."""
    from handful.checkpoint import check_place

    check_place(out)
    if (out / "head.json").exists():
        say(f"note: {out} holds a classifier, which will be replaced")


def _load_backbone(backbone: str, weights: Path | None) -> Backbone:
    """Load a backbone, and say so if it is one to try things with."""
    from handful import load_backbone

    if backbone == "mini":
        say("note: backbone mini is a demonstration model; for real work, --backbone ViT-B-16/openai")
    return load_backbone(backbone, weights=weights)


def _templates(
    cls: type[FewShotClassifier], method: str, templates: str, given: dict[str, Any]
) -> dict[str, Any]:
    """Give the parameter that holds the templates, where the method has one."""
    from handful.errors import unexpected
    from handful.methods import read_value

    if cls.text_parameter in given:
        raise unexpected("--templates", templates, f"one of --templates and -p {cls.text_parameter}=")
    if cls.text_parameter not in cls._get_param_names():
        raise unexpected("--templates", templates, f"none for {method}, which reads no templates")
    found = read_value(templates)
    return {cls.text_parameter: found if found and isinstance(found, list | dict) else templates}


def _parameters(cls: type[FewShotClassifier], method: str, pairs: list[str]) -> dict[str, Any]:
    """Read parameters of a method, `name=value`: the value as JSON where it is, as a word where it isn't."""
    from handful.errors import unexpected
    from handful.methods import read_value

    known = sorted(set(cls._get_param_names()) - {"backbone"})
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise typer.BadParameter(f"got {pair!r}, expected name=value, as in alpha=2.0")
        if name not in known:
            raise unexpected("--param", name, f"a parameter of {method}: {known}")
        is_template = name == cls.text_parameter and value == "{}"  # the name alone; no empty JSON object
        found[name] = value if is_template else read_value(value)
    return found

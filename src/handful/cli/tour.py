"""`handful demo`: the main job on real images, offline, in a minute."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from handful.bench import Bench, run_bench
from handful.cli.digits import write_digits
from handful.compare import compare, sensible
from handful.data import few_shot
from handful.files import write_atomically
from handful.methods import METHODS
from handful.names import SEEDS, SHOTS
from handful.report import sheet_table
from handful.report.page import write_report
from handful.report.pictures import curves
from handful.report.tables import accuracy_sheet, group

TITLE = "scikit-learn's digits, backbone mini (a demonstration model)"
QUICK = ("auto", "zero-shot", "linear-probe", "logistic-probe", "tip-adapter", "meta-adapter")
"""Methods of different kinds that fit in seconds."""


def run_demo(
    folder: Path,
    out: Console,
    progress: Callable[[str], None],
    shots: tuple[int, ...] = SHOTS,
    seeds: tuple[int, ...] = SEEDS,
) -> None:
    """Bench the quick methods on scikit-learn's digits, choose one inside a support set, and predict with it.

    Parameters
    ----------
    folder
        Where to put `digits/`, `bench/` with its report, `curves.png` and `best/`.
    out
        Takes the results; `progress` takes what happens meanwhile.
    shots, seeds
        Images per class, and draws; the choice is made inside the first draw of the most images.
    """
    start = time.perf_counter()
    progress("Writing scikit-learn's 1,797 handwritten digits to class folders")
    write_digits(folder / "digits")
    bench = Bench(
        "few-shot",
        (str(folder / "digits"),),
        tuple(map(support_spec, QUICK)),
        folder / "bench",
        shots=shots,
        seeds=seeds,
    )
    fits = len(QUICK) * len(shots) * len(seeds)
    progress(f"Fitting {len(QUICK)} methods on {len(shots) * len(seeds)} draws, {fits} fits")
    (found,) = group(run_bench(bench))
    out.print(sheet_table(replace(accuracy_sheet(found), title=TITLE)))
    write_atomically(folder / "curves.png", curves(found, "test", TITLE))
    report = write_report(bench.out)[-1]

    train, test = (bench.sets[0].part(part) for part in ("train", "test"))
    support = few_shot(train, max(shots), seeds[0])
    methods = sensible(bench.model, QUICK)
    chosen = compare(methods, support, count=4, repeats=1, progress=progress)
    score = next(one for one in chosen.ranks if one.method == chosen.best)
    clf = methods[chosen.best].fit(support)
    clf.save(folder / "best")
    image = str(test.items[0])
    probabilities = clf.predict_proba([image])[0]
    row = int(probabilities.argmax())
    out.print(
        f"Best by cross-validation inside the {len(support)} support images (no test image seen): "
        f"{chosen.best}, {100 * score.balanced_accuracy:.1f} ± {100 * score.error:.1f} %; on the test images "
        f"{100 * clf.score(test):.1f} %."
    )
    out.print(f"{image}: {clf.class_names_[row]} ({100 * probabilities[row]:.0f} %)")
    out.print(f"Curves: {folder / 'curves.png'}   Report: {report}   Classifier: {folder / 'best'}")
    progress(f"Done in {time.perf_counter() - start:.0f} s")


def support_spec(name: str) -> str:
    """Write a method for a bench so that it chooses its parameters inside the support set, if it can."""
    settings = METHODS[name]().get_params()
    return name if settings.get("selection", "support") == "support" else f"{name}:selection=support"

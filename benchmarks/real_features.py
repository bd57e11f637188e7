"""Every method on features, on real CLIP features: accuracy, seconds, and how far its probabilities hold.

    uv run python benchmarks/real_features.py [FOLDER] [--methods NAME[:PARAMETER=VALUE,...] ...]
        [--sets NAME ...] [--shots 1 2 4 8 16] [--draws 3] [--out ROWS.jsonl] [--mini EXTRACTED]

FOLDER (`../shared/clip_features`) holds a `.safetensors` a data set: `class_weights`, `support` and `test`
with their labels, and perhaps `support_shots_1`, which is then the one draw at one shot. A draw takes K
images of each class at random, from a seed, and 2K of the same seed hold these K; where no class has more
than K there is one draw. Fits go through the public estimators, on the same draws for all methods.
Hyper-parameters are fixed or chosen inside the support set: nothing looks at a test image.

`--mini EXTRACTED` takes the second regime in place of it, names that say little: features of the embedded
backbone, encoded once into `EXTRACTED/mini_features`, of Grocery, Caltech101, 40 classes of Tiny-ImageNet
(the archives of `../shared/data`, extracted there) and scikit-learn's digits.

Every fit is a line of ROWS.jsonl, and a fit that is there is not made again. Seconds are of the processor,
so that they hold on a shared machine too (OMP_NUM_THREADS=1). A fit that takes longer than `--limit` is given
up, and more shots of that set are not tried; one that takes longer than `--patience` is made for one draw
alone. `--print` prints the tables of the lines that are there.
"""

from __future__ import annotations

import argparse
import json
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from compare_advice import by_folder
from compare_advice import read as read_images
from numpy.typing import NDArray
from real_features_tables import tables
from safetensors import safe_open
from safetensors.torch import save_file

import handful
from handful.cli.digits import write_digits
from handful.data.templates import resolve_templates
from handful.methods import read_value
from handful.metrics import calibration_error, per_class_accuracy

METHODS = (
    "zero-shot", "auto", "auto:selection=fixed", "linear-probe", "linear-probe:tolerance=0.0001",
    "linear-probe:selection=support",
    "linear-probe:solver=published", "linear-probe:solver=published,strength=0", "logistic-probe", "gda",
    "kernel-ridge", "ss-text", "tip-adapter", "tip-adapter:selection=support", "tip-adapter-f",
    "tip-adapter-f:selection=support", "ape", "ape:selection=support", "ape-t", "linear-adapter", "taskres",
    "lp-plus-plus", "cross-modal-probe:solver=convex", "cross-modal-probe", "text-tuning", "clip-adapter",
    "clip-adapter:selection=fixed,alpha=0.6",
    "tda", "tda:seeded=false",
)  # fmt: skip
Row = dict[str, Any]
Backbone = handful.Backbone | None
MINI_SETS = ("grocery", "caltech", "tiny-imagenet", "digits")
TINY_CLASSES = 40
LEAST, MOST_POOL, MOST_TEST = 20, 32, 40
"""Images of a class of `mini`'s data sets: in all at least, to draw from, and to ask for at most."""
COVERAGE = 0.9
KEPT = ("blend", "shares", "names", "moves_together", "held_out")
"""What `auto` found, for a line."""

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", type=Path, nargs="?", default=Path("../shared/clip_features"))
parser.add_argument("--methods", nargs="+", default=list(METHODS))
parser.add_argument("--calibrate", nargs="*", default=[], help="Of the methods, those to calibrate too.")
parser.add_argument("--sets", nargs="+")
parser.add_argument("--shots", nargs="+", type=int, default=[1, 2, 4, 8, 16])
parser.add_argument("--draws", type=int, default=3)
parser.add_argument("--out", type=Path, default=Path("real_features.jsonl"))
parser.add_argument("--limit", type=float, default=120.0)
parser.add_argument("--patience", type=float, default=30.0)
parser.add_argument("--mini", type=Path, metavar="EXTRACTED")
parser.add_argument("--print", action="store_true", help="Fit nothing.")


@dataclass(frozen=True)
class Set:
    """Unit features of images to draw from and to ask for, and the text classifier of their classes."""

    name: str
    class_names: list[str]
    class_weights: torch.Tensor
    support: torch.Tensor
    labels: torch.Tensor
    test: torch.Tensor
    test_labels: NDArray[np.int64]
    one: tuple[torch.Tensor, torch.Tensor] | None = None

    def draw(self, shots: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Give features and labels of K images of each class, or of all that there are."""
        if shots == 1 and self.one is not None:
            return self.one
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.labels), generator=generator)
        shuffled = order[self.labels[order].argsort(stable=True)]
        sorted_ = self.labels[shuffled]
        place = torch.arange(len(sorted_)) - torch.searchsorted(sorted_, sorted_)
        rows = shuffled[place < shots]
        return self.support[rows], self.labels[rows]

    def draws(self, shots: int) -> int:
        """Give how many different draws there are: none, one, or many."""
        counts = self.labels.bincount(minlength=len(self.class_names))
        if int(counts.max()) < shots:
            return 0
        alone = int(counts.max()) == shots or (shots == 1 and self.one is not None)
        return 1 if alone else 1_000_000


def read(path: Path) -> Set:
    """Read a data set; its test images in one random order, for what reads them as a stream."""
    with safe_open(path, "pt") as file:
        names = json.loads(file.metadata()["class_names"])
        found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    units = {key: F.normalize(one.float(), dim=-1) for key, one in found.items() if one.ndim == 2}
    order = torch.randperm(len(units["test"]), generator=torch.Generator().manual_seed(0))
    one = None
    if "support_shots_1" in units:
        one = units["support_shots_1"], found["support_shots_1_labels"].long()
    return Set(
        path.stem, names, units["class_weights"], units["support"], found["support_labels"].long(),
        units["test"][order], found["test_labels"].long()[order].numpy(), one,
    )  # fmt: skip


def encode_mini(folder: Path, name: str, out: Path, mini: handful.Backbone) -> None:
    """Encode a data set with `mini`, once, into a file of the form that `read` reads."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if name == "digits":
        write_digits(out.with_suffix(""))
        images = by_folder(*(out.with_suffix("") / part for part in ("train", "test")))
    else:
        images = read_images(folder, name)
    generator = np.random.default_rng(0)
    names = sorted(name for name, shown in images.items() if len(shown) >= LEAST)
    if name == "tiny-imagenet":
        names = sorted(generator.permutation(names)[:TINY_CLASSES].tolist())
    parts: tuple[list[tuple[Path, int]], list[tuple[Path, int]]] = ([], [])
    for label, class_name in enumerate(names):
        shown = images[class_name]
        paths = [shown[one][0] for one in generator.permutation(sorted(shown))]
        half = min(len(paths) // 2, MOST_POOL)
        for part, some in zip(parts, (paths[:half], paths[half : half + MOST_TEST]), strict=True):
            part.extend((path, label) for path in some)
    tensors = {"class_weights": handful.class_weights(mini, names, resolve_templates("default"))}
    for key, pairs in zip(("support", "test"), parts, strict=True):
        tensors[key] = handful.encode(mini, [path for path, _ in pairs]).values[:, 0].contiguous()
        tensors[f"{key}_labels"] = torch.tensor([label for _, label in pairs])
    save_file(tensors, out, {"class_names": json.dumps(names)})


def data_sets(args: argparse.Namespace, mini: Backbone) -> Iterator[Set]:
    """Read the data sets one by one, the smallest first."""
    if args.mini is not None and mini is not None:
        for name in args.sets or MINI_SETS:
            path = args.mini / f"mini_features/{name}.safetensors"
            if not path.exists():
                encode_mini(args.mini, name, path, mini)
            yield read(path)
        return
    for path in sorted(args.folder.glob("*.safetensors"), key=lambda path: path.stat().st_size):
        if not args.sets or path.stem in args.sets:
            yield read(path)


def make(spec: str, backbone: Backbone) -> handful.FewShotClassifier:
    """Make an estimator of `name:parameter=value,...`."""
    name, _, words = spec.partition(":")
    pairs = (word.partition("=") for word in words.split(",") if word)
    return handful.METHODS[name](backbone, **{key: read_value(value) for key, _, value in pairs})


class TooLong(Exception):
    """A fit took longer than it may."""


def give_up(*_: Any) -> NoReturn:
    """End the fit."""
    raise TooLong


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Give up after some seconds of the processor."""
    signal.signal(signal.SIGPROF, give_up)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def measure(spec: str, data: Set, shots: int, draw: int, mini: Backbone, args: argparse.Namespace) -> Row:
    """Fit on a draw, and ask for the test images; or say why it was left out."""
    x, labels = data.draw(shots, draw)
    fingerprint = "" if mini is None else mini.fingerprint
    support, asked = (handful.Features(one[:, None], None, fingerprint) for one in (x, data.test))
    clf, names = make(spec, mini), [f"{row:04} {name}" for row, name in enumerate(data.class_names)]
    found: Row = {}
    try:
        with within(args.limit):
            start = time.process_time()
            clf.fit(support, labels.numpy(), class_names=names, class_weights=data.class_weights)
            found["cpu"] = time.process_time() - start
            found |= quality(clf, asked, data.test_labels)
            found["cpu_of_test"] = time.process_time() - start - found["cpu"]
    except TooLong:
        return {"left_out": f"over {args.limit:.0f} s"}
    except handful.HandfulError as error:
        return {"left_out": str(error)}
    found |= {key: clf.selected_[key] for key in KEPT if key in clf.selected_}
    if spec in args.calibrate and shots > 1:
        with suppress(TooLong), within(5 * args.limit):
            start = time.process_time()
            clf.calibrate(support, labels.numpy(), class_weights=data.class_weights)
            seconds = time.process_time() - start
            found["calibrated"] = {"cpu": seconds, **quality(clf, asked, data.test_labels)}
    return found


def quality(clf: handful.FewShotClassifier, asked: Any, truth: NDArray[np.int64]) -> dict[str, float]:
    """Give accuracy, expected calibration error, and of sets at 90 % how often they hold the class."""
    chances = clf.predict_proba(asked)
    said = chances.argmax(1)
    found = {
        "accuracy": float((said == truth).mean()),
        "balanced": float(np.nanmean(per_class_accuracy(said, truth, chances.shape[1]))),
        "ece": calibration_error(chances, truth),
    }
    if clf.calibration_ is None or clf.calibration_.scores is None:
        return found
    try:
        mask = clf.predict_set_mask(asked, COVERAGE)
    except handful.ParameterError:  # too few images were held out
        return found
    held = float(mask[np.arange(len(truth)), truth].mean())
    return found | {"coverage": held, "size": float(mask.sum(1).mean())}


def run(args: argparse.Namespace, mini: Backbone, rows: list[Row]) -> None:
    """Make the fits that are not there, and add a line for each."""
    fields = ("regime", "set", "shots", "draw", "method")
    done = {tuple(row[field] for field in fields): row for row in rows}
    regime = "mini" if args.mini else "clip"
    for data in data_sets(args, mini):
        for spec, shots in ((spec, shots) for spec in args.methods for shots in sorted(args.shots)):
            place = regime, data.name, spec
            if any("left_out" in row for row in rows if (row["regime"], row["set"], row["method"]) == place):
                continue
            for draw in range(min(args.draws, data.draws(shots))):
                key = (regime, data.name, shots, draw, spec)
                if key not in done:
                    found = measure(spec, data, shots, draw, mini, args)
                    done[key] = dict(zip(fields, key, strict=True)) | found
                    rows.append(done[key])
                    with args.out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(done[key]) + "\n")
                taken = done[key]
                if taken.get("cpu", args.patience) + taken.get("cpu_of_test", 1) > args.patience:
                    break


def main() -> None:
    """Run and print."""
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.mini is None and not any(args.folder.glob("*.safetensors")) and not args.print:
        print(f"Skipped: {args.folder} has no .safetensors file (see ../shared/clip_features/README.md).")
        return
    rows = (
        [json.loads(line) for line in args.out.read_text("utf-8").splitlines()] if args.out.exists() else []
    )
    if not args.print:
        run(args, handful.load_backbone("mini", device="cpu") if args.mini else None, rows)
    regime = "mini" if args.mini else "clip"
    print("\n".join(tables([row for row in rows if row["regime"] == regime], list(args.methods))))


if __name__ == "__main__":
    main()

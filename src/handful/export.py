"""A fitted classifier as one ONNX file: image in, probabilities out, and no PyTorch to run it.

What a method computes once (class weights, refined ones, keys) is a constant of the file, so nothing
of the text tower is left in it but for CoCoOp, whose prompts each image shifts. `docs/onnx_alone.py`
runs such a file with onnxruntime, numpy and Pillow.
"""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from handful.backbones import Backbone
from handful.backbones.base import split_projection
from handful.data.pixels import GRID, RANGES, SHARE, TAILS
from handful.errors import HandfulError, ParameterError, unexpected
from handful.estimator import FewShotClassifier
from handful.estimator.confidence import classify
from handful.estimator.conformal import can_state
from handful.files import write_atomically
from handful.heads import Head
from handful.towers.pair import image_encoder

TOLERANCE = 1e-4
"""Largest difference of a probability between the file and PyTorch."""
CHECKED = (1, 3)
"""Batch sizes that a file is checked with."""
MOST_BYTES = 2 * 10**9
"""Weights of one file: its format ends at 2^31 bytes."""
EXTRA = ("onnx", "onnxscript", "onnxruntime")
WORDS = {
    "shortest": "Resize in proportion to a shorter side of {shorter}, the longer one rounded down; cut out "
    "the centre, {height} high and {width} wide.",
    "squash": "Resize to a height of {height} and a width of {width}, whatever the proportions.",
    "longest": "Resize in proportion until no side is longer than a height of {height} and a width of "
    "{width}; fill up with grey level {fill} around the centre.",
}

COVERAGES = (0.5, 0.8, 0.9, 0.95, 0.99)
"""Of prediction sets, whose thresholds a file holds where enough images were held out."""
SETS = (
    "set_thresholds holds, by coverage, a number or one for each class: an image may be of every class whose "
    "probability is not below it, and at that rate its own is among them; where none is, none is likely."
)
LEVELS = (
    "Make levels beyond 8 bits (greys of 16 or 32 bits, floats; of colours their upper 8 bits) bytes: floats "
    "that are all whole 255ths from 0 to 1 by 255; else find low and high, the percentiles {tails} of "
    "all levels (of every n-th row and column, n = 1 + the longer side // {grid}), or where these are equal "
    "the smallest and largest; take the first range from 0 to one of {ranges}, the first for floats only, "
    "that holds both; scale from it if high - low is at least {share} of it or 0, else from low..high; clip."
)


def export_onnx(
    clf: FewShotClassifier, path: str | Path, progress: Callable[[str], None] = lambda text: None
) -> Path:
    """Write a fitted classifier as one ONNX file that runs without handful and PyTorch.

    Its input `images` is uint8 `[N, H, W, 3]`, RGB, any number of images that were resized and cropped
    to the backbone's size; its output `probabilities` is float32 `[N, C]`, what `predict_proba` gives,
    temperature and all. Rescaling to 0..1 and normalisation are inside. The metadata holds, as texts,
    `class_names` (a JSON list), `method`, `backbone`, `backbone_fingerprint`, `preprocessing` (JSON:
    `size` [H, W], `resize`, `interpolation`, `fill`, `mean`, `std`, `levels`), `preprocessing_in_words`,
    `temperature` and `handful` (the version); and of a classifier that keeps held-out scores `set_thresholds`
    (JSON: by coverage, of `COVERAGES`, the smallest probability of a class in a prediction set, one for all
    or one for each) and `sets_in_words`.

    Before it is written, it is run under onnxruntime on random images, one and three at a time: no
    probability may differ from PyTorch's by more than 1e-4.

    Parameters
    ----------
    clf
        Fitted, with a backbone that is on the CPU and computes in float32.
    path
        Where to write; a file that is there is replaced, at once and whole.
    progress
        Is told the largest difference.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    ParameterError
        A package of the extra is missing, the backbone computes elsewhere or otherwise, the method or
        the text tower (CoCoOp) can't be traced, the weights don't fit into one file, the file would
        compute something else, or it can't be written.
    """
    path = Path(path)
    require_extra()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error
    data = to_onnx(clf)
    difference = largest_difference(clf, data)
    if not difference <= TOLERANCE:
        raise ParameterError(
            f"{type(clf).__name__} under onnxruntime gives probabilities that differ from PyTorch's by up to "
            f"{difference:.1e}, expected at most {TOLERANCE:g}. Nothing was written: please report it with "
            f"the backbone, {clf.loaded_backbone().title!r}, and the versions of torch and onnxruntime."
        )
    progress(f"largest difference to PyTorch {difference:.1e}, at most {TOLERANCE:g} allowed")
    try:
        write_atomically(path, data)
    except OSError as error:
        raise _unwritable(path, error) from error
    return path


def to_onnx(clf: FewShotClassifier) -> bytes:
    """Give a fitted classifier as the bytes of an ONNX file, unchecked."""
    backbone = clf.loaded_backbone()
    if backbone.device.type != "cpu" or backbone.dtype != torch.float32:
        raise unexpected(
            "backbone", backbone, "one that computes in float32 on the CPU",
            'Load it so, load_backbone(name, device="cpu", dtype="float32"), and give it to handful.load.',
        )  # fmt: skip
    preprocess = preprocessing(backbone)
    model = Served(clf, preprocess).eval()
    images = torch.zeros(2, *preprocess["size"], 3, dtype=torch.uint8)
    shapes = {"images": {0: torch.export.Dim("N")}}
    try:
        with torch.no_grad(), _quiet():
            traced = torch.export.export(model, (images,), dynamic_shapes=shapes)
            weights = [*traced.state_dict.values(), *traced.constants.values()]
            size = sum(weight.nbytes for weight in weights if isinstance(weight, Tensor))
            if size > MOST_BYTES:
                raise ParameterError(
                    f"The weights take {size / 1e9:.1f} GB, and one ONNX file holds {MOST_BYTES / 1e9:g}. "
                    "Fit on a smaller backbone."
                )
            program: Any = torch.onnx.export(
                traced, (images,), dynamo=True, dynamic_shapes=shapes, verbose=False,
                input_names=["images"], output_names=["probabilities"],
            )  # fmt: skip
    except HandfulError:
        raise
    except Exception as error:  # whatever the exporter raises on code that it can't follow
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ParameterError(
            f"{type(clf).__name__} can't be exported, PyTorch's exporter says {type(error).__name__}: "
            f"{reason} A head must be traceable for a number of images that is left open: x.shape[0], not "
            "len(x)."
        ) from error
    passes: Any = importlib.import_module("onnx_ir.passes.common")
    passes.ClearMetadataAndDocStringPass()(program.model)  # which code made each node, and where it lies
    program.model.metadata_props.update(facts_of(clf, preprocess))
    return program.model_proto.SerializeToString()


def facts_of(clf: FewShotClassifier, preprocess: dict[str, Any]) -> dict[str, str]:
    """Give the metadata of a file."""
    height, width = preprocess["size"]
    words = WORDS[preprocess["resize"]].format(
        height=height, width=width, shorter=min(height, width), fill=preprocess["fill"]
    )
    rule = {"tails": TAILS, "share": SHARE, "ranges": RANGES, "grid": GRID}
    return {
        "class_names": json.dumps(clf.class_names_, ensure_ascii=False),
        "method": clf.fitted_.method,
        "backbone": clf.loaded_backbone().title,
        "backbone_fingerprint": clf.fingerprint_,
        "preprocessing": json.dumps(preprocess | {"levels": rule}),
        "preprocessing_in_words": f"{LEVELS.format(**rule)} Turn the image upright, lay it "
        f"on white, make it RGB. {words} Resize "
        f"as Pillow does, {preprocess['interpolation']}. Give the bytes, [N, {height}, {width}, 3]: the file "
        "itself rescales them to 0..1 and normalises them by mean and std.",
        "temperature": repr(clf.fitted_.temperature),
        **_sets(clf),
        "handful": version("handful"),
    }


def _sets(clf: FewShotClassifier) -> dict[str, str]:
    """Give the thresholds of prediction sets as metadata, at the coverages that the classifier can state."""
    scores, names = clf.calibration_.scores if clf.calibration_ else None, clf.class_names_
    if scores is None:
        return {}
    found: dict[str, float | list[float]] = {}
    for coverage in COVERAGES:
        if can_state(scores, names, coverage):
            own = clf.set_rule(coverage).thresholds.tolist()
            found[str(coverage)] = own if len(set(own)) > 1 else own[0]
    return {"set_thresholds": json.dumps(found), "sets_in_words": SETS} if found else {}


def preprocessing(backbone: Backbone) -> dict[str, Any]:
    """Say how an image becomes what the file takes.

    Raises
    ------
    ParameterError
        The shorter side is resized to a size that is not square, which `WORDS` don't describe.
    """
    found = backbone.preprocessing
    height, width = found.size
    if found.resize == "shortest" and height != width:
        raise unexpected("backbone", backbone, f"one of square images, got {height} x {width} pixels")
    return {
        "size": [height, width],
        "resize": found.resize,
        "interpolation": found.interpolation,
        "fill": found.fill if found.resize == "longest" else None,
        "mean": list(found.mean),
        "std": list(found.std),
    }


def largest_difference(clf: FewShotClassifier, data: bytes) -> float:
    """Say by how much a file's probabilities differ from the head's, each image alone, on random images."""
    onnxruntime: Any = importlib.import_module("onnxruntime")
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    size, rng, found = preprocessing(clf.loaded_backbone())["size"], np.random.default_rng(0), []
    for count in CHECKED:
        images = rng.integers(0, 256, (count, *size, 3), np.uint8)
        given: NDArray[np.float32] = session.run(["probabilities"], {"images": images})[0]
        parts = [classify(clf.head_, clf.calibration_, x).probabilities for x in clf.query(list(images))]
        found.append(np.abs(given - torch.cat(parts).numpy()).max())
    return float(np.max(found))


def require_extra() -> None:
    """Raise an error that says how to install what is missing."""
    for name in EXTRA:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ParameterError(
                f'Export needs the extra "onnx", and {name} is not installed ({error}). '
                'Install it: pip install "handful[onnx]".'
            ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the optimiser from logging each node that it leaves as it is."""
    logger = logging.getLogger("onnxscript.optimizer")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _unwritable(path: Path, error: OSError) -> ParameterError:
    return unexpected("path", str(path), f"a file that can be written ({error.strerror})")


class Served(nn.Module):
    """Images `[N, H, W, 3]`, bytes, to probabilities `[N, C]`: all that the file computes."""

    def __init__(self, clf: FewShotClassifier, preprocess: dict[str, Any]) -> None:
        super().__init__()
        self.mean, self.std = (torch.tensor(preprocess[name]).view(3, 1, 1) for name in ("mean", "std"))
        self.temperature = clf.fitted_.temperature
        self.encode, self.logits = encoder(clf.head_, clf.loaded_backbone()), clf.head_.traceable()

    def forward(self, images: Tensor) -> Tensor:
        """Normalise, give the head what it needs, and give the softmax."""
        pixels = (images.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        return torch.softmax(self.logits(self.encode(pixels)) / self.temperature, 1)


def encoder(head: Head, backbone: Backbone) -> nn.Module:
    """Give the module that turns pixels into what a head needs."""
    if head.needs == "pixels":
        return nn.Identity()
    return image_encoder(backbone) if head.needs == "features" else HiddenEncoder(backbone)


class HiddenEncoder(nn.Module):
    """Pixels `[N, 3, H, W]` to the vector before the image tower's final projection, `[N, H]`."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.visual = image_encoder(backbone)

    def forward(self, pixels: Tensor) -> Tensor:
        """Run the tower without its projection."""
        return split_projection(self.visual, pixels)[0]

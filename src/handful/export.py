"""A fitted classifier as one ONNX file: image in, probabilities out, and no PyTorch to run it.

What a method computes once (class weights, refined ones, keys) is a constant of the file, so nothing
of the text tower is left in it but for CoCoOp, whose prompts each image shifts. `docs/onnx_alone.py`
runs such a file with onnxruntime, numpy and Pillow.
"""

from __future__ import annotations

import copy
import importlib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from handful import __version__
from handful.backbones import Backbone
from handful.errors import HandfulError, ParameterError, unexpected
from handful.estimator import FewShotClassifier
from handful.files import write_atomically
from handful.heads import CacheHead, CosineHead, Head
from handful.methods.cocoop import ConditionalHead, ConditionalPromptLearner
from handful.methods.fine_tuning import TunedHead
from handful.methods.meta_adapter import RefinedHead
from handful.methods.mma import MmaHead
from handful.prompts import with_context
from handful.towers import Taps

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


def export_onnx(
    clf: FewShotClassifier, path: str | Path, progress: Callable[[str], None] = lambda text: None
) -> Path:
    """Write a fitted classifier as one ONNX file that runs without handful and PyTorch.

    Its input `images` is uint8 `[N, H, W, 3]`, RGB, any number of images that were resized and cropped
    to the backbone's size; its output `probabilities` is float32 `[N, C]`, what `predict_proba` gives,
    temperature and all. Rescaling to 0..1 and normalisation are inside. The metadata holds, as texts,
    `class_names` (a JSON list), `method`, `backbone`, `backbone_fingerprint`, `preprocessing` (JSON:
    `size` [H, W], `resize`, `interpolation`, `fill`, `mean`, `std`), `preprocessing_in_words`,
    `temperature` and `handful` (the version).

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
    return {
        "class_names": json.dumps(clf.class_names_, ensure_ascii=False),
        "method": clf.method or f"{type(clf).__module__}:{type(clf).__qualname__}",
        "backbone": clf.loaded_backbone().title,
        "backbone_fingerprint": clf.fingerprint_,
        "preprocessing": json.dumps(preprocess),
        "preprocessing_in_words": f"Turn the image upright, lay it on white, make it RGB. {words} Resize "
        f"as Pillow does, {preprocess['interpolation']}. Give the bytes, [N, {height}, {width}, 3]: the file "
        "itself rescales them to 0..1 and normalises them by mean and std.",
        "temperature": repr(clf.temperature),
        "handful": __version__,
    }


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
    """Say by how much a file's probabilities differ from `predict_proba` on random images."""
    onnxruntime: Any = importlib.import_module("onnxruntime")
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    size, rng, found = preprocessing(clf.loaded_backbone())["size"], np.random.default_rng(0), []
    for count in CHECKED:
        images = rng.integers(0, 256, (count, *size, 3), np.uint8)
        given: NDArray[np.float32] = session.run(["probabilities"], {"images": images})[0]
        found.append(np.abs(given - clf.predict_proba(list(images))).max())
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


class AdaptedTower(nn.Module):
    """An image tower with MMA's adapters: pixels `[N, 3, H, W]` to features `[N, E]`."""

    def __init__(self, head: MmaHead, backbone: Backbone) -> None:
        super().__init__()
        self.visual, self.tower, self.after = image_encoder(backbone), backbone.image, head.image.after

    def forward(self, pixels: Tensor) -> Tensor:
        """Run the whole tower, and what follows each adapted block."""
        with Taps(self.tower) as taps:
            for block, adapt in self.after.items():
                taps.after(block, adapt)
            return self.visual(pixels)


class Prompts(nn.Module):
    """CoCoOp's logits with every prompt written out, up to the end of the longest one.

    `handful.towers` shares what prompts begin with, for a batch whose size is known; here it is open.

    Raises
    ------
    ParameterError
        The text tower is not a causal transformer, so that prompts can't be cut at their end.
    """

    def __init__(self, learner: ConditionalPromptLearner, names: tuple[str, ...], backbone: Backbone) -> None:
        super().__init__()
        tower = backbone.text
        if not tower.causal or not tower.blocks:
            raise ParameterError(
                "CoCoOp reads its prompts anew for each image, and this backbone's text tower is not a "
                "causal transformer of CLIP's kind: that can't be exported. Export a method whose text is "
                "computed once, as coop."
            )
        tokens, slots = with_context(backbone, names, len(learner.context))
        self.ends, columns = tower.ends(tokens), (slots[0] >= 0).nonzero()  # the context's, in every prompt
        start, stop, length = int(columns.min()), int(columns.max()) + 1, int(self.ends.max()) + 1
        words = cast(nn.Module, tower.embedding)(tokens[:, :length])  # [C, L, D]
        self.before, self.behind = words[:, :start].clone(), words[:, stop:].clone()
        self.places = cast(Tensor, tower.positions)[:length].clone()
        self.causal = torch.full((length, length), -torch.inf).triu(1)
        self.learner, self.transformer = learner, cast(nn.Module, tower.entry)
        self.final_norm, self.projection = cast(nn.Module, tower.final_norm), tower.projection

    def forward(self, features: Tensor) -> Tensor:
        """Map features `[N, E]` to logits `[N, C]`."""
        unit = F.normalize(features, dim=-1)
        contexts = self.learner.context + self.learner.meta_net(unit)[:, None]  # [N, M, D]
        images, classes = features.shape[0], len(self.ends)
        parts = [
            self.before.expand(images, -1, -1, -1),
            contexts[:, None].expand(-1, classes, -1, -1),
            self.behind.expand(images, -1, -1, -1),
        ]
        x = (torch.cat(parts, 2) + self.places).flatten(0, 1)  # [N C, L, D]
        x = self.transformer(x, attn_mask=self.causal).unflatten(0, (images, classes))
        x = self.final_norm(x[:, torch.arange(classes), self.ends])
        if isinstance(self.projection, nn.Module):
            x = self.projection(x)
        elif self.projection is not None:
            x = x @ self.projection
        return self.learner.scale * (F.normalize(x, dim=-1) @ unit[:, :, None])[:, :, 0]


class Served(nn.Module):
    """Images `[N, H, W, 3]`, bytes, to probabilities `[N, C]`: all that the file computes."""

    def __init__(self, clf: FewShotClassifier, preprocess: dict[str, Any]) -> None:
        super().__init__()
        self.mean, self.std = (torch.tensor(preprocess[name]).view(3, 1, 1) for name in ("mean", "std"))
        self.temperature = clf.temperature
        head, backbone = clf.fitted_head(), clf.loaded_backbone()
        self.encode, self.logits = encoder(head, backbone), reader(head, clf.class_names_, backbone)

    def forward(self, images: Tensor) -> Tensor:
        """Normalise, encode, compare, and give the softmax."""
        pixels = (images.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        return torch.softmax(self.logits(self.encode(pixels)) / self.temperature, 1)


def image_encoder(backbone: Backbone) -> nn.Module:
    """Give the module that turns pixels into features."""
    return cast(nn.Module, cast(Any, backbone.model).visual)


def encoder(head: Head, backbone: Backbone) -> nn.Module:
    """Turn pixels into what `reader` reads: features, but for a foreign head that reads pixels itself."""
    if isinstance(head, TunedHead):
        visual = copy.deepcopy(image_encoder(backbone))
        visual.load_state_dict(head.learned, strict=False)  # buffers are the backbone's
        return visual
    if head.needs == "features":
        return image_encoder(backbone)
    return AdaptedTower(head, backbone) if isinstance(head, MmaHead) else nn.Identity()


def reader(head: Head, names: tuple[str, ...], backbone: Backbone) -> Callable[[Tensor], Tensor]:
    """Give the function from features to logits, with all that is computed once computed."""
    if isinstance(head, CacheHead):
        return lambda features: cache_logits(head, features)
    if isinstance(head, ConditionalHead) and head.learner is not None:
        return Prompts(head.learner, names, backbone)
    if isinstance(head, RefinedHead):
        return CosineHead(head.refined, head.scale).logits
    if isinstance(head, TunedHead | MmaHead):
        return CosineHead(head.class_weights, head.scale).logits
    return head.logits


def cache_logits(head: CacheHead, features: Tensor) -> Tensor:
    """`CacheHead.logits`, for a number of images that is left open."""
    x = F.normalize(features, dim=-1)
    affinities = torch.exp(-head.beta * (1 - x @ head.keys.T))
    base = head.scale * x @ head.class_weights.T
    return base + head.alpha * torch.zeros_like(base).index_add(1, head.labels, affinities)

"""Export: the file alone gives what the classifier gives, holds no text, and says how to use it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import TINY, write_model
from pictures import png_of_16_bits
from PIL import Image
from torch import Tensor

import handful
from handful import export
from handful.estimator.confidence import classify
from handful.export import Served, export_onnx, largest_difference, preprocessing
from handful.heads import LinearHead
from handful.refiner import Refiner

ALONE = Path(__file__).parents[1] / "docs/onnx_alone.py"
QUICK: dict[str, dict[str, Any]] = {
    "clip-adapter": {"selection": "fixed", "side": "both"},
    "meta-adapter": {"refiner": Refiner(16).reset(torch.Generator().manual_seed(0))},
    "mma": {"alpha": 0.5},
    "cross-modal-probe": {"iterations": 5},
}
"""Parameters that make a fit on `tiny` quick, and what it learned visible."""
KINDS = ["clip-adapter", "cocoop", "fine-tuning", "mma", "tip-adapter"]
"""One method of each kind of graph; the logistic probe's is made on `mini`, others' are parts of these."""
VOCABULARY = 49408
BLOCK = (
    "import runpy, sys\n"
    "sys.modules |= dict.fromkeys(['handful', 'torch', 'torchvision', 'open_clip', 'onnx', 'sklearn'])\n"
    "sys.argv = sys.argv[1:]\n"
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)

Fitted = Callable[[str], handful.FewShotClassifier]


@pytest.fixture(scope="module")
def fitted(tiny: handful.Backbone, support: handful.ImageSet) -> Fitted:
    """Give a method fitted on `tiny`."""
    known: dict[str, handful.FewShotClassifier] = {}

    def fit(method: str) -> handful.FewShotClassifier:
        if method not in known:
            cls, parameters = handful.METHODS[method], QUICK.get(method, {})
            quick = {"epochs": 1, "views": 0, "batch_size": 8}
            takes = cls._get_param_names()
            parameters = {name: value for name, value in quick.items() if name in takes} | parameters
            known[method] = cls(tiny, **parameters).fit(support)
        return known[method]

    return fit


def random_images(count: int, side: int = 32) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (count, side, side, 3), np.uint8)


def run(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["probabilities"], {"images": images})[0]


def facts(path: Path) -> dict[str, str]:
    return {prop.key: prop.value for prop in onnx.load(path).metadata_props}


def assert_traced_alike(clf: handful.FewShotClassifier) -> None:
    images = random_images(3)
    with torch.no_grad():
        found = Served(clf, preprocessing(clf.loaded_backbone()))(torch.from_numpy(images))
    served = [classify(clf.head_, clf.calibration_, x).probabilities for x in clf.query(list(images))]
    np.testing.assert_allclose(found.numpy(), torch.cat(served).numpy(), atol=2e-6)
    if clf.head_.reader() == clf.head_.read:  # else answers depend on the images before
        np.testing.assert_allclose(found.numpy(), clf.predict_proba(list(images)), atol=2e-6)


@pytest.mark.parametrize("method", handful.METHODS)
def test_what_is_traced_is_what_predicts(method: str, fitted: Fitted):
    assert_traced_alike(fitted(method))


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("cocoop", {"init": None, "length": 1, "batch_size": 40}),
        ("mma", {"side": "text", "alpha": 0.5}),
        ("mma", {"side": "image", "alpha": 0.5}),
        ("clip-adapter", {"side": "text", "selection": "fixed"}),
    ],
)
def test_and_so_with_other_parameters(
    method: str, parameters: dict[str, Any], tiny: handful.Backbone, support: handful.ImageSet
):
    assert_traced_alike(handful.METHODS[method](tiny, epochs=1, views=0, **parameters).fit(support))


def test_a_cache_of_unequal_classes_can_be_followed(tiny: handful.Backbone, support: handful.ImageSet):
    clf = handful.TipAdapter(tiny, alpha=9.0).fit(support[np.arange(1, len(support))])
    assert clf.head_.balance
    clf.fitted_ = replace(clf.fitted_, head=replace(clf.head_))  # as one that was just loaded
    file = onnxruntime.InferenceSession(export.to_onnx(clf))
    images = random_images(3)
    (found,) = file.run(["probabilities"], {"images": images})
    np.testing.assert_allclose(found, clf.predict_proba(list(images)), atol=2e-5)


@pytest.mark.parametrize("method", KINDS)
def test_the_file_alone_gives_the_same(
    method: str, fitted: Fitted, support: handful.ImageSet, tmp_path: Path
):
    clf, images, said = fitted(method), random_images(5), []
    if method == "tip-adapter":
        clf = handful.TipAdapter(clf.backbone).fit(support).calibrate(support)
        assert clf.fitted_.temperature != 1
    path = export_onnx(clf, tmp_path / "new" / "model.onnx", said.append)
    expected = clf.predict_proba(list(images))
    assert len(said) == 1
    np.testing.assert_allclose(run(path, images), expected, atol=1e-5)
    np.testing.assert_allclose(run(path, images[:1]), expected[:1], atol=1e-5)
    model = onnx.load(path)
    constants = {tensor.name: np.prod(tensor.dims) for tensor in model.graph.initializer}
    tower = sum(part.numel() for part in clf.backbone.model.visual.parameters())
    learned = sum(part.numel() for part in clf.head_.tensors().values())
    if method == "cocoop":  # the blocks of its text tower, and no token table
        assert any(name.startswith("logits.text.transformer") for name in constants)
        assert sum(constants.values()) < VOCABULARY * clf.backbone.text.width / 10
    else:
        room = 200 if method == "fine-tuning" else learned + 200  # which learned the tower
        assert sum(constants.values()) < tower + room
    assert not any(node.metadata_props for node in model.graph.node)  # code, and paths of this machine
    assert float(facts(path)["temperature"]) == clf.fitted_.temperature
    if method == "tip-adapter":
        other = handful.ZeroShot(clf.backbone).fit(class_names=clf.class_names_)
        assert largest_difference(other, path.read_bytes()) > export.TOLERANCE


def test_the_command_and_a_script_without_handful(
    support: handful.ImageSet, mini: handful.Backbone, digits: Path, tmp_path: Path, call
):
    handful.LogisticProbe(mini, selection="fixed").fit(support).save(tmp_path / "model")
    out = tmp_path / "model.onnx"
    code, printed, error = call("export", tmp_path / "model", "--format", "onnx", "--out", out)
    assert code == 0, error
    assert "largest difference to PyTorch" in printed and "logistic-probe, 10 classes" in printed
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["model.onnx"]

    told = facts(out)
    assert json.loads(told["class_names"]) == list(support.class_names)
    assert told["method"] == "logistic-probe" and told["handful"] == handful.__version__
    assert told["backbone"] == "mini" and told["backbone_fingerprint"] == mini.fingerprint
    assert json.loads(told["preprocessing"])["size"] == [64, 64]
    tower = sum(part.nbytes for part in mini.model.visual.parameters())
    table = mini.model.token_embedding.weight.nbytes
    assert out.stat().st_size < 1.02 * tower < 1.02 * tower + table

    digit = Image.open(digits / "test/eight/0018.png").convert("RGBA")
    odd = Image.new("RGBA", (digit.width + 41, digit.height + 7))
    odd.paste(digit, (20, 3))
    odd.save(tmp_path / "odd.png")
    files = [digits / "test/eight/0018.png", tmp_path / "odd.png", *deep_files(digit, tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", BLOCK, ALONE, out, *files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    code, printed, error = call("predict", tmp_path / "model", *files)
    assert printed == done.stdout

    clf = handful.load(tmp_path / "model", mini).calibrate(support)
    clf.save(tmp_path / "model")
    assert call("export", tmp_path / "model", "--format", "onnx", "--out", out)[0] == 0
    thresholds = json.loads(facts(out)["set_thresholds"])
    assert thresholds == {str(one): float(clf.set_rule(one).thresholds[0]) for one in (0.5, 0.8, 0.9, 0.95)}
    done = subprocess.run(
        [sys.executable, "-c", BLOCK, ALONE, out, *files], capture_output=True, text=True, check=False
    )
    printed = call("predict", tmp_path / "model", *files, "--coverage", "0.9")[1]
    assert printed == done.stdout and printed.count("; set at 90 %: ") == len(files)


def deep_files(digit: Image.Image, folder: Path) -> list[Path]:
    """Write a picture with levels beyond 8 bits: stretched or not, of greys, floats and colours."""
    share = np.asarray(digit.convert("L")) / 255
    levels = {"full.png": share * 65535, "thermal.png": 7000 + 2000 * share, "half.png": share * 30_000}
    for name, array in levels.items():
        Image.fromarray(array.astype(np.uint16)).save(folder / name)
    floats = {"0-1000.tiff": share * 1000, "signed.tiff": share * 4 - 2, "0-1.tiff": 0.2 + share / 5}
    for name, array in floats.items():
        Image.fromarray(array.astype(np.float32)).save(folder / name)
    colours = (share * 4095).round().astype(np.uint16)[..., None].repeat(3, 2)
    (folder / "colours.png").write_bytes(png_of_16_bits(colours))
    return [folder / name for name in (*levels, *floats, "colours.png")]


def test_a_file_that_is_off_is_not_written(fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "model.onnx").write_text("old")
    monkeypatch.setattr(export, "to_onnx", lambda clf: b"")
    for difference in (2e-4, np.nan):
        monkeypatch.setattr(export, "largest_difference", lambda *_, difference=difference: difference)
        with pytest.raises(handful.ParameterError, match="differ from PyTorch"):
            export_onnx(fitted("zero-shot"), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_text() == "old"
    monkeypatch.setattr(export, "largest_difference", lambda *_: 0.0)
    for place in (tmp_path, tmp_path / "model.onnx" / "below"):
        with pytest.raises(handful.ParameterError, match="a file that can be written"):
            export_onnx(fitted("zero-shot"), place)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_errors_of_the_command(fitted: Fitted, tmp_path: Path, call, monkeypatch: pytest.MonkeyPatch):
    model = fitted("zero-shot").save(tmp_path / "model")
    code, _, error = call("export", model, "--format", "tflite")
    assert code == 1 and "expected 'onnx'" in error
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, _, error = call("export", model)
    assert code == 1 and 'pip install "handful[onnx]"' in error


def test_a_backbone_that_computes_otherwise(
    fitted: Fitted, tiny: handful.Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    clf = fitted("zero-shot")
    monkeypatch.setattr(tiny, "dtype", torch.bfloat16)
    with pytest.raises(handful.ParameterError, match="float32 on the CPU"):
        export_onnx(clf, tmp_path / "model.onnx")


def test_cocoop_needs_a_causal_text_tower(support: handful.ImageSet, tmp_path: Path):
    text = TINY["text_cfg"] | {"no_causal_mask": True}
    config, weights = write_model(tmp_path / "b", TINY | {"custom_text": True, "text_cfg": text})
    backbone = handful.load_backbone(config, weights=weights, device="cpu")
    clf = handful.CoCoOp(backbone, epochs=1, views=0, batch_size=40).fit(support)
    with pytest.raises(handful.ParameterError, match="not a causal transformer"):
        export_onnx(clf, tmp_path / "model.onnx")


@dataclass(frozen=True)
class Fixed(LinearHead):
    """A head that a tracer can't leave the number of images open in."""

    def read(self, x: Tensor) -> Tensor:
        return super().read(x) + x.new_zeros(len(x), len(self.bias))


def test_a_head_that_fixes_the_number_of_images(fitted: Fitted, tiny: handful.Backbone, tmp_path: Path):
    clf = handful.LogisticProbe(tiny)
    vars(clf).update(vars(fitted("logistic-probe")))
    clf.fitted_ = replace(clf.fitted_, head=Fixed(clf.head_.weight, clf.head_.bias))
    with pytest.raises(handful.ParameterError, match=r"x\.shape\[0\], not len\(x\)"):
        export_onnx(clf, tmp_path / "model.onnx")


def test_weights_that_one_file_can_not_hold(fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(export, "MOST_BYTES", 1000)
    with pytest.raises(handful.ParameterError, match="one ONNX file holds 1e-06"):
        export_onnx(fitted("zero-shot"), tmp_path / "model.onnx")


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_preprocessing_is_read_from_the_backbone(mode: str, tmp_path: Path):
    given = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear"}
    config = {"model_cfg": TINY, "preprocess_cfg": given | {"resize_mode": mode, "fill_color": 9}}
    path, weights = write_model(tmp_path, TINY)
    path.write_text(json.dumps(config))
    backbone = handful.load_backbone(path, weights=weights, device="cpu")
    found = preprocessing(backbone)
    assert found.pop("fill") == (9 if mode == "longest" else None)
    assert found.pop("size") == [32, 32] and found.pop("resize") == mode
    assert found == given
    backbone.preprocessing = replace(backbone.preprocessing, size=(32, 48), resize="shortest")
    with pytest.raises(handful.ParameterError, match="square images, got 32 x 48"):
        preprocessing(backbone)

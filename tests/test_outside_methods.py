"""Methods and heads from outside this package: everything works for them too; errors tell their author."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from conftest import HOST
from fastapi.testclient import TestClient
from torch import Tensor, nn

import handful
from handful.estimator.method import Method
from handful.export import export_onnx
from handful.extend import (
    CosineHead,
    FewShotClassifier,
    Fitted,
    Head,
    HeadContext,
    Learned,
    Task,
    descend,
    expect,
    number,
)
from handful.methods import find_method
from handful.serve import create_app, load_models


class Nearest(FewShotClassifier):
    """Nearest class mean."""

    uses_text = False

    def __init__(self, backbone: object = None) -> None:
        self.backbone = backbone

    def learn(self, task: Task) -> Learned:
        x = task.features.directions()
        means = torch.stack([x[task.labels == c].mean(0) for c in range(len(task.class_names))])
        return Learned(CosineHead(F.normalize(means, dim=-1), task.scale))


@dataclass(frozen=True)
class ProjectionHead(Head):
    """`s norm(h P) W^T`: a final projection `P [H, E]` of its own on what enters the image tower's."""

    kind: ClassVar[str] = "projection"
    needs: ClassVar[str] = "hidden"
    class_weights: Tensor
    projection: Tensor
    scale: float

    @property
    def width(self) -> int:
        return len(self.projection)

    def image_features(self, x: Tensor) -> Tensor:
        return F.normalize(x @ self.projection, dim=-1)

    def read(self, x: Tensor) -> Tensor:
        return self.scale * self.image_features(x) @ self.class_weights.T

    def tensors(self) -> dict[str, Tensor]:
        return {"class_weights": self.class_weights, "projection": self.projection}

    def settings(self) -> dict[str, Any]:
        return {"scale": self.scale}

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], settings: dict[str, Any], context: HeadContext):
        expect(tensors, {"class_weights": (len(context.class_names), "E"), "projection": ("H", "E")})
        return cls(tensors["class_weights"], tensors["projection"], number(settings, "scale"))


class Projection(FewShotClassifier):
    """The final projection learned anew, near its start (after Fahes et al. 2024)."""

    head_type = ProjectionHead
    uses_image_tower = True

    def __init__(self, backbone: object = None, *, strength: float = 1.0, templates: str = "default") -> None:
        self.backbone, self.strength, self.templates = backbone, strength, templates

    def learn(self, task: Task) -> Learned:
        hidden, start = task.hidden.mean(1), task.backbone.image.projection.detach()
        moved = nn.Linear(*start.shape[::-1], bias=False)
        nn.init.zeros_(moved.weight)

        def head() -> ProjectionHead:
            return ProjectionHead(task.class_weights, start + moved.weight, task.scale)

        def loss() -> Tensor:
            return F.cross_entropy(head().read(hidden), task.labels) + self.strength * moved.weight.norm()

        losses = descend(moved, loss, 20, 1e-4)
        found = dataclasses.replace(head(), projection=(start + moved.weight).detach())
        return Learned(found, losses=tuple(losses))


@pytest.fixture(scope="module")
def projected(tiny: handful.Backbone, support: handful.ImageSet) -> Projection:
    return Projection(tiny, strength=1e-3).fit(support)


def test_a_method_is_found_by_its_import_path(
    mini: handful.Backbone, support: handful.ImageSet, tmp_path: Path
):
    assert find_method(f"{__name__}:Nearest") is Nearest
    clf = Nearest(mini).fit(support)
    clf.save(tmp_path / "nearest")
    with pytest.raises(handful.CheckpointError, match="--method"):
        handful.load(tmp_path / "nearest")
    again = handful.load(tmp_path / "nearest", mini, method=Nearest)
    np.testing.assert_array_equal(again.decision_function(support), clf.decision_function(support))
    for name in ("nothing", "json:loads", "no_module:Class", f"{__name__}:Absent"):
        with pytest.raises(handful.ParameterError, match="method"):
            find_method(name)


# -- a head that reads what enters the final projection ----------------------------------------------


def test_it_reads_images_and_features_alike(
    projected: Projection, tiny: handful.Backbone, support: handful.ImageSet
):
    assert projected.head_.needs == "hidden"
    features = handful.encode(tiny, support)
    by_images = projected.decision_function(support)
    np.testing.assert_allclose(projected.decision_function(features), by_images, atol=1e-5)
    hidden = features.hidden[:, 0]
    np.testing.assert_allclose(projected.decision_function(hidden), by_images, atol=1e-5)
    expected = 1 / tiny.scale * by_images  # by hand
    unit = F.normalize(hidden @ projected.head_.projection, dim=-1)
    np.testing.assert_allclose(unit @ projected.head_.class_weights.T, expected, atol=1e-6)
    np.testing.assert_allclose(projected.transform(support), unit, atol=1e-6)
    refit = Projection(tiny, strength=1e-3).fit(features, np.array(support.class_names)[support.labels])
    assert projected.losses_[-1] < projected.losses_[0]
    order = [refit.class_names_.index(name) for name in support.class_names]
    np.testing.assert_allclose(refit.decision_function(support)[:, order], by_images, atol=0.05)
    with pytest.raises(handful.DataError, match=r"16 wide, this classifier reads 32"):
        projected.predict(features.values[:, 0])
    with pytest.raises(handful.DataError, match="give images"):  # which features alone can't
        Projection(tiny).fit(features.values[:, 0], support.labels, class_names=support.class_names)


def test_at_its_start_it_is_zero_shot(tiny: handful.Backbone, support: handful.ImageSet):
    clf = Projection(tiny, strength=1e6).fit(support)
    zero = handful.ZeroShot(tiny).fit(class_names=support.class_names)
    np.testing.assert_allclose(clf.decision_function(support), zero.decision_function(support), atol=1e-3)


def test_saved_served_and_exported_it_answers_the_same(
    projected: Projection, tiny: handful.Backbone, support: handful.ImageSet, tmp_path: Path
):
    projected.save(tmp_path / "model")
    again = handful.load(tmp_path / "model", tiny, method=Projection)
    expected = projected.predict_proba(support)
    np.testing.assert_array_equal(again.predict_proba(support), expected)

    app = create_app(load_models([tmp_path / "model"], tiny, [Projection]), tiny)
    images = [("images", (str(row), Path(support.items[row]).read_bytes())) for row in range(3)]
    with TestClient(app, base_url=HOST) as client:
        answers = client.post("/predict", params={"top": 10}, files=images).json()["results"]
    for row, answer in enumerate(answers):
        served = {one["class"]: one["probability"] for one in answer["answers"]["model"]["predictions"]}
        found = [served[name] for name in support.class_names]
        np.testing.assert_allclose(found, expected[row], atol=1e-5)

    path = export_onnx(again, tmp_path / "model.onnx")
    pixels = np.random.default_rng(7).integers(0, 256, (4, 32, 32, 3), np.uint8)
    (exported,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
        ["probabilities"], {"images": pixels}
    )
    np.testing.assert_allclose(exported, projected.predict_proba(list(pixels)), atol=1e-5)


def test_it_is_calibrated_and_saved(
    projected: Projection, tiny: handful.Backbone, support: handful.ImageSet, tmp_path: Path
):
    clf = Projection(tiny, strength=1e-3).fit(support).calibrate(support, folds=2)
    clf.save(tmp_path / "model")
    again = handful.load(tmp_path / "model", tiny, method=Projection)
    np.testing.assert_array_equal(
        again.predict(support, unknown="auto"), clf.predict(support, unknown="auto")
    )


# -- what a task was not given -----------------------------------------------------------------------

EMPTY = Task(None, torch.zeros(0, dtype=torch.int64), ("cat",), None, 100.0)


@pytest.mark.parametrize(
    ("name", "error", "way_out"),
    [
        ("inputs", handful.DataError, r"give fit\(images, labels\)"),
        ("features", handful.DataError, r"give fit\(images, labels\)"),
        ("hidden", handful.DataError, r"give fit\(images, labels\)"),
        ("class_weights", handful.ParameterError, "give a backbone or class_weights="),
        ("backbone", handful.ParameterError, "give a backbone"),
        ("held_out", handful.ParameterError, r"give fit\(\.\.\., validation="),
    ],
)
def test_asking_a_task_for_what_it_lacks_says_how_to_give_it(name: str, error: type, way_out: str):
    with pytest.raises(error, match=way_out):
        getattr(EMPTY, name)
    if name not in ("features", "hidden"):
        assert not EMPTY.has(name)


def test_a_task_of_fresh_crops_has_no_features(tiny: handful.Backbone, two_classes: Path):
    class Asks(FewShotClassifier):
        trains = True

        def __init__(self, backbone: object = None, views: object = "online") -> None:
            self.backbone, self.views = backbone, views

        def learn(self, task: Task) -> Learned:
            return Learned(CosineHead(task.features.directions(), task.scale))

    with pytest.raises(handful.DataError, match="give views, a number"):
        Asks(tiny).fit(handful.ImageSet.from_folder(two_classes))


# -- what a fit found --------------------------------------------------------------------------------

FITTED = [name for name in vars(Method) if name.endswith("_") and not name.endswith("__")]


def test_a_fit_is_one_frozen_value():
    clf = handful.TipAdapter().fit(np.eye(2, 4, dtype=np.float32), ["a", "b"], class_weights=np.eye(2, 4))
    fitted = clf.fitted_
    for field in dataclasses.fields(Fitted):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(fitted, field.name, None)
    assert clf.notes_ is fitted.notes
    noted = dataclasses.replace(fitted, notes=("mine",))
    clf.fitted_ = noted
    assert clf.notes_ == ("mine",)
    assert fitted.notes != ("mine",)


@pytest.mark.parametrize("name", sorted(set(FITTED) - {"fitted_"}))
def test_what_is_read_from_the_fit_cannot_be_assigned(name: str):
    clf = handful.TipAdapter()
    assert name.removesuffix("_") in {field.name for field in dataclasses.fields(Fitted)}
    for _ in range(2):  # fitted or not
        with pytest.raises(
            AttributeError, match=rf"{name} is read .*replace\(clf\.fitted_, {name[:-1]}=\.\.\."
        ):
            setattr(clf, name, None)
        clf.fit(np.eye(2, 4, dtype=np.float32), ["a", "b"], class_weights=np.eye(2, 4))
    getattr(clf, name)


class Forgetful(Nearest):
    """Writes on itself, and fails."""

    def learn(self, task: Task) -> Learned:
        if len(task.class_names) > 2:
            raise ValueError("three are too many")
        return super().learn(task)


def test_a_fit_that_fails_leaves_the_last_one_whole():
    x = np.eye(3, 4, dtype=np.float32)
    clf = Forgetful().fit(x[:2], ["a", "b"])
    before = clf.fitted_
    with pytest.raises(ValueError, match="three are too many"):
        clf.fit(x, ["a", "b", "c"])
    with pytest.raises(handful.TrainingError):
        clf.fit(x[:1], ["a"], class_names=["a", "d"])
    assert clf.fitted_ is before
    assert clf.predict(x[:2]).tolist() == ["a", "b"]


def test_a_class_without_images_is_named():
    with pytest.raises(handful.TrainingError, match=r"class_weights.*NaN.*classes \['cup', 'mug'\]"):
        Nearest().fit(np.eye(2, 4, dtype=np.float32), ["a", "b"], class_names=["a", "mug", "b", "cup"])

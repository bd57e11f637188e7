"""A method from outside, as `docs/your-method.md` has it: fitted, evaluated, explained, served, exported."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch

import handful
from handful import extend, methods

PAGE = Path(__file__).parents[1] / "docs" / "your-method.md"
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the page's files, which is the current one."""
    names = []
    for text in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S):
        names.append(text.split("\n")[0].removeprefix("# "))
        (tmp_path / names[-1]).write_text(text)
    assert names == ["gda.py", "taskres.py"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in names:
        sys.modules.pop(name.removesuffix(".py"), None)


def test_they_are_as_short_as_the_page_says(outside: Path):
    assert len((outside / "gda.py").read_text().splitlines()) <= 60
    assert len((outside / "taskres.py").read_text().splitlines()) <= 45


@pytest.mark.parametrize("name", ["gda:GDA", "taskres:TaskRes"])
def test_every_command_takes_it(outside: Path, few_digits: Path, call: Call, name: str):
    own = ["--method", name]
    parameters = ["-p", "epochs=3", "-p", "views=0"] if "TaskRes" in name else []
    code, out, err = call("fit", few_digits / "train", *own, *parameters, "--out", "saved", "--json")
    assert code == 0, err
    assert json.loads(out)["method"] == name
    code, out, err = call("evaluate", "saved", few_digits / "test", *own, "--json")
    assert code == 0 and json.loads(out)["accuracy"] > 0.2, err
    image = next((few_digits / "test").rglob("*.png"))
    assert call("explain", "saved", image, *own)[0] == 0
    code, out, _ = call("predict", "saved", image, *own, "--json")
    assert code == 0
    answer = json.loads(out)["results"][0]["predictions"][0]
    code, out, err = call("export", "saved", "--out", "saved.onnx", *own)
    assert code == 0 and "largest difference" in out, err
    code, _, err = call("predict", "saved", image)
    assert code == 1 and f"--method {name}" in err

    from starlette.testclient import TestClient

    from handful.methods import find_method
    from handful.serve.app import create_app
    from handful.serve.classifiers import load_models

    served = load_models([Path("saved")], None, [find_method(name)])
    with TestClient(create_app(served, served["saved"].loaded_backbone()), "http://localhost") as client:
        found = client.post("/predict", content=image.read_bytes()).json()["results"][0]["answers"]["saved"]
    assert found["predictions"][0]["class"] == answer["class"]
    assert found["predictions"][0]["probability"] == pytest.approx(answer["probability"], abs=1e-4)


def test_gda_is_its_formula(outside: Path):
    """Logits by hand, in double precision; without alpha it is zero-shot."""
    sys.path.insert(0, str(outside))
    from gda import GDA

    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(12, 6)).astype(np.float32), np.arange(12) % 3
    text = np.linalg.qr(rng.normal(size=(6, 6)))[0][:3].astype(np.float32)
    given = {"class_names": ["a", "b", "c"], "class_weights": text}
    unit = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float64)
    means = np.stack([unit[labels == row].mean(0) for row in range(3)])
    scatter = (unit - means[labels]).T @ (unit - means[labels])
    precision = 6 * np.linalg.inv(scatter + np.trace(scatter) / 11 * np.eye(6))
    bias = -0.5 * np.einsum("ce,ef,cf->c", means, precision, means) - np.log(3)
    expected = 100 * unit @ text.T + 0.3 * (unit @ precision @ means.T + bias)
    found = GDA(alpha=0.3).fit(x, labels, **given).decision_function(x)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-3)
    zero = GDA(alpha=0).fit(x, labels, **given).decision_function(x)
    np.testing.assert_allclose(zero, 100 * unit @ text.T, atol=1e-3)
    with pytest.raises(handful.TrainingError, match="'c'"):  # it has no image, and no mean
        GDA().fit(x[labels < 2], labels[labels < 2], **given)


def test_an_entry_point_names_a_method(outside: Path, few_digits: Path, monkeypatch: pytest.MonkeyPatch):
    sys.path.insert(0, str(outside))
    import gda

    monkeypatch.setattr(gda.GDA, "method", "my-gda")
    point = EntryPoint("my-gda", "gda:GDA", methods.ENTRY_POINTS)
    monkeypatch.setattr(methods, "entry_points", lambda group: [point] if group == point.group else [])
    assert methods.find_method("my-gda") is gda.GDA
    clf = methods.find_method("my-gda")("mini").fit(handful.ImageSet.from_folder(few_digits / "train"))
    clf.save("named")
    again = handful.load("named")  # the package is installed: no class is given
    images = sorted((few_digits / "test").rglob("*.png"))[:3]
    np.testing.assert_array_equal(again.predict_proba(images), clf.predict_proba(images))
    with pytest.raises(handful.ParameterError, match=r"one of .*'my-gda'"):
        methods.find_method("nothing")


def test_a_module_that_fails_to_import_is_told_as_it_is(outside: Path):
    (outside / "broken.py").write_text("import torch\n1 / 0\n")
    sys.path.insert(0, str(outside))
    with pytest.raises(handful.ParameterError, match="ZeroDivisionError"):
        methods.find_method("broken:Broken")


class WrongKind(extend.FewShotClassifier):
    def __init__(self, backbone: object = None) -> None:
        self.backbone = backbone

    def learn(self, task: extend.Task) -> extend.Learned:
        width = task.class_weights.shape[1]
        return extend.Learned(extend.LinearHead(torch.zeros(2, width), torch.zeros(2)))


class WrongShape(WrongKind):
    head_type = extend.LinearHead

    def learn(self, task: extend.Task) -> extend.Learned:
        return extend.Learned(extend.LinearHead(torch.zeros(5, 16), torch.zeros(2)))


@pytest.mark.parametrize(("method", "match"), [(WrongKind, "head_type"), (WrongShape, "could not be saved")])
def test_a_head_is_checked_when_it_is_fitted(method: type, match: str):
    with pytest.raises(handful.ParameterError, match=match):
        method().fit(np.eye(2, 16, dtype=np.float32), ["a", "b"], class_weights=np.eye(2, 16))


def test_all_that_a_method_may_import_is_named():
    assert sorted(extend.__all__) == extend.__all__
    for name in extend.__all__:
        assert getattr(extend, name) is not None

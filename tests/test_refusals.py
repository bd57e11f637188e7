"""What can't be is refused before anything is trained, and a fit that is there is not lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import handful
from handful.estimator.inputs import ImageReader

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("images were encoded")

    monkeypatch.setattr(ImageReader, "support", refuse)


@pytest.mark.usefixtures("nothing_is_read")
@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--calibrate", "0.05", "--shots", "1"], "one image of each class"),
        (["--calibrate", "0"], "--calibrate=0"), (["--calibrate", "1"], "--calibrate=1"),
        (["--calibrate", "5"], "--calibrate=5"), (["--calibrate", "-0.1"], "--calibrate"),
        (["--calibrate", "nan"], "--calibrate"),
        (["-p", "selection=val"], "--validation FOLDER"), (["-p", "selection=oracle"], "--validation FOLDER"),
        (["-p", "selection=val", "--validation", "OTHER"], "does not know: ['owl']"),
        (["--validation", "nowhere"], "nowhere"),
        (["--out", "FILE"], "Can't write to"), (["--out", "FILE/deeper/still"], "Can't write to"),
        (["--templates", "a photo"], "expected a text that holds {}"),
        (["--templates", "nowhere.txt"], "no file 'nowhere.txt'"),
        (["--templates", '{"lamp": ["a lamp"]}'], "without prompts for the classes ['red panda']"),
        (["--templates", "a {}", "--method", "coop"], "none for coop, which reads no templates"),
        (["--templates", "a {}", "--method", "logistic-probe"], "none for logistic-probe"),
        (["--templates", "a {}", "-p", "templates=the {}"], "one of --templates and -p templates="),
    ],
)  # fmt: skip
def test_from_the_command_line(
    call: Call,
    two_classes: Path,
    tmp_path: Path,
    words: list[str],
    hint: str,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("")
    for label in ("lamp", "owl"):
        path = tmp_path / "OTHER" / label / "0.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(path)
    code, text, err = call("fit", two_classes, *words)
    assert (code, text) == (1, "") and hint in err and "Traceback" not in err
    assert not (tmp_path / "handful-model").exists()


def test_meta_train_looks_at_its_file_first(call: Call, two_classes: Path, tmp_path: Path, monkeypatch: Any):
    monkeypatch.setattr(handful, "meta_train", None)
    for out in (tmp_path, two_classes / "lamp" / "0.png" / "net.safetensors"):
        code, _, err = call("meta-train", two_classes, "--out", out)
        assert code == 1 and "--out" in err


@pytest.mark.usefixtures("nothing_is_read")
def test_in_python(tiny: handful.Backbone, photos: handful.ImageSet):
    other = handful.ImageSet(photos.items, photos.labels, ("lamp", "owl"))
    with pytest.raises(handful.ParameterError, match="validation="):
        handful.ClipAdapter(tiny, selection="val").fit(photos)
    with pytest.raises(handful.DataError, match="does not know"):
        handful.TipAdapter(tiny, selection="val").fit(photos, validation=other)
    with pytest.raises(handful.ParameterError, match="validation="):
        handful.TipAdapter(tiny).fit(photos, validation="folder")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), handful.DataError("It can't be.")])
def test_a_calibration_that_fails_leaves_the_fit(
    call: Call, two_classes: Path, tmp_path: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(handful.TipAdapter, "calibrate", fail)
    words = ["fit", two_classes, "--method", "tip-adapter", "--calibrate", "0.05"]
    code, _, err = call(*words, "--out", tmp_path / "m")
    assert code == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert "holds the classifier as it was fitted, not calibrated" in err
    assert handful.load(tmp_path / "m").calibration_ is None


@pytest.mark.filterwarnings("default:Nothing is called unknown")
def test_a_threshold_that_calls_nothing_unknown_says_so(call: Call, two_classes: Path, tmp_path: Path):
    image = next((two_classes / "lamp").iterdir())
    code, _, err = call("fit", two_classes, "--calibrate", "0.05", "--out", tmp_path / "m")
    assert code == 0 and "note: 6 held-out images are too few" in err and "it takes 19" in err
    code, text, err = call("predict", tmp_path / "m", image, "--unknown", "auto", "--json")
    assert code == 0 and json.loads(text)["results"][0]["unknown"] is False
    assert err.count("warning: Nothing is called unknown: 6 held-out images") == 1
    assert "too few images" in (tmp_path / "m/README.md").read_text()
    assert "warning" not in call("predict", tmp_path / "m", image, "--unknown", "0.5")[2]
    assert "warning" not in call("predict", tmp_path / "m", image)[2]


def test_templates_from_the_command_line(call: Call, two_classes: Path, tmp_path: Path):
    def weights(*words: object) -> Any:
        code, _, err = call("fit", two_classes, "--method", "zero-shot", *words, "--out", tmp_path / "m")
        assert code == 0, err
        clf = handful.load(tmp_path / "m")
        return clf.templates_, clf.head_.class_weights.tolist()

    (tmp_path / "t.txt").write_text("a {c}.\n# no\nthe {class}.\n")
    (tmp_path / "t.json").write_text(json.dumps({"mine": ["a {c}.", "the {}."], "other": ["x {}"]}))
    expected = weights("-p", 'templates=["a {}.", "the {}."]')
    assert expected[0] == ("a {}.", "the {}.")
    file = tmp_path / "t.txt"
    for given in (file, f"{tmp_path / 't.json'}#mine", '["a {c}.", "the {class}."]'):
        assert weights("--templates", given) == weights("-p", f"templates={given}") == expected
    assert weights("--templates", "{}")[0] == weights("-p", "templates={}")[0] == ("{}",)
    by_class = {"Lamp": ["a lamp."], "Red_Panda": ["a red panda."]}
    (tmp_path / "cupl.json").write_text(json.dumps(by_class))
    found = weights("--templates", tmp_path / "cupl.json")
    assert found[0] == {"lamp": ("a lamp.",), "red panda": ("a red panda.",)}
    assert found[1] == weights("--templates", "a {}.")[1]

"""The command line, as people call it: results on stdout, the rest on stderr, honest exit codes."""

from __future__ import annotations

import io
import json
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import TINY, write_model
from rich.console import Console

import handful


@pytest.fixture(scope="module")
def model(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = handful.few_shot(handful.ImageSet.from_folder(digits / "train", verify=False), 2)
    return handful.TipAdapter("mini").fit(images).save(tmp_path_factory.mktemp("cli") / "model")


def test_fit_evaluate_predict_info(call, few_digits: Path, tmp_path: Path):
    digits = few_digits
    out = tmp_path / "model"
    code, text, err = call(
        "fit", digits / "train", "--shots", 2, "--seed", 3, "-p", "balance=false", "--out", out
    )
    assert code == 0
    assert f"model: {out}" in text
    assert "100 of 100 files used" in err
    assert "selection: support" in text and "held out: 20 images" in text and "blend: " in text
    clf = handful.load(out)
    assert (clf.method, clf.balance) == ("auto", False)

    code, text, _ = call("evaluate", out, digits / "test", "--json")
    facts = json.loads(text)
    assert code == 0
    assert facts["images"] == 60
    assert set(facts["per_class"]) == set(facts_names())
    assert facts["accuracy"] == handful.load(out).score(handful.ImageSet.from_folder(digits / "test"))
    assert 0 < facts["zero_shot"] < 1

    image = next((digits / "test/three").iterdir())
    code, text, _ = call("predict", out, image, "--top", 3, "--json")
    result = json.loads(text)["results"][0]
    assert code == 0
    assert result["image"] == str(image)
    assert [p["probability"] for p in result["predictions"]] == sorted(
        (p["probability"] for p in result["predictions"]), reverse=True
    )
    assert len(result["predictions"]) == 3

    code, text, _ = call("info", out, "--json")
    assert code == 0
    assert json.loads(text)["backbone"]["name"] == "mini"
    assert json.loads(text)["selected"]["held_out"]["images"] == 20
    code, text, _ = call("info", out)
    assert "zero-shot has" in text and "95 % interval" in text and "class names: say " in text
    card = (out / "README.md").read_text()
    assert "- held out: 20 images" in card and "- blend: " in card


def facts_names() -> tuple[str, ...]:
    from handful.cli.digits import NAMES

    return NAMES


@pytest.mark.parametrize("method", sorted(handful.METHODS))
def test_every_method_fits_from_the_command_line(call, two_classes: Path, tmp_path: Path, method: str):
    fewer = ["-p", "epochs=1"] if method == "fine-tuning" else []  # of 200, which take long
    code, text, _ = call("fit", two_classes, "--method", method, *fewer, "--out", tmp_path / "m", "--json")
    assert code == 0
    assert json.loads(text)["method"] == method


def test_a_backbone_from_files(call, two_classes: Path, tmp_path: Path):
    config, weights = write_model(tmp_path / "tiny", TINY)
    code, *_ = call("fit", two_classes, "--backbone", config, "--weights", weights, "--out", tmp_path / "m")
    assert code == 0
    assert call("evaluate", tmp_path / "m", two_classes)[0] == 0


def test_info_of_the_installation(call):
    code, text, _ = call("info")
    assert code == 0
    assert "tip-adapter" in text


def test_one_bad_image_among_good_ones(call, model: Path, digits: Path, tmp_path: Path):
    (tmp_path / "bad.png").write_text("no")
    image = next((digits / "test/one").iterdir())
    code, text, err = call("predict", model, tmp_path / "bad.png", image)
    assert code == 1
    assert len(text.splitlines()) == 1
    assert "bad.png" in err


@pytest.mark.parametrize(
    ("words", "code", "hint"),
    [
        (["fit", "nowhere"], 1, "expected a folder of class folders"),
        (["fit", "DATA", "--method", "tip"], 1, "one of ['ape', 'ape-t', 'auto'"),
        (["fit", "DATA", "--param", "gamma=1"], 1, "a parameter of auto"),
        (["fit", "DATA", "--param", "gamma"], 2, "name=value"),
        (["fit", "DATA", "--shots", "0"], 2, "--shots"),
        (["fit", "DATA", "--backbone", "ViT-B-99/openai"], 1, "ViT-B-"),
        (["fit", "DATA", "--on-error", "ignore"], 1, "'raise' or 'skip'"),
        (["compare", "DATA", "--methods", "linear-probe,tip"], 1, "method='tip'"),
        (["predict", "nowhere", "a.png"], 1, "no saved classifier"),
        (["predict"], 2, "Usage: handful predict"),
        (["nothing"], 2, "No such command"),
    ],
)
def test_what_goes_wrong_is_said_in_one_place(
    call, two_classes: Path, tmp_path: Path, words: list[str], code: int, hint: str
):
    words = [str(two_classes) if word == "DATA" else word for word in words]
    got, text, err = call(*words)
    assert got == code
    assert text == ""
    assert hint in err
    assert "Traceback" not in err


def test_nothing_but_a_classifier_is_written_over(call, two_classes: Path, tmp_path: Path):
    before = sorted(two_classes.parent.rglob("*"))
    code, _, err = call("fit", two_classes, "--method", "zero-shot", "--out", two_classes)
    assert (code, "something other" in err) == (1, True)
    assert sorted(two_classes.parent.rglob("*")) == before
    for said in (False, True):
        code, _, err = call("fit", two_classes, "--method", "zero-shot", "--out", tmp_path / "m")
        assert (code, "will be replaced" in err, "next: handful evaluate" in err) == (0, said, True)
    code, text, _ = call("predict", tmp_path / "m", two_classes)  # a folder is its images
    assert (code, len(text.splitlines())) == (0, 6)


@pytest.mark.parametrize("command", ["fit", "compare"])
def test_one_class_is_not_enough(call, two_classes: Path, tmp_path: Path, command: str):
    shutil.rmtree(two_classes / "lamp")
    code, _, err = call(command, two_classes)
    assert (code, "holds one class, 'red panda'" in err) == (1, True)


def test_a_port_that_is_taken_is_said_at_once(call):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, err = call("serve", "--port", taken.getsockname()[1])
    assert (code, "expected one that is free" in err) == (1, True)
    code, _, err = call("serve", "--host", "192.0.2.1")
    assert (code, "an address of this machine" in err) == (1, True)


def test_bad_files_are_skipped_with_a_report(call, two_classes: Path, tmp_path: Path):
    (two_classes / "lamp/broken.png").write_bytes(b"x")
    code, _, err = call("fit", two_classes, "--out", tmp_path / "m")
    assert code == 1
    assert "broken.png" in err
    code, _, err = call("fit", two_classes, "--out", tmp_path / "m", "--on-error", "skip")
    assert code == 0
    assert "1 left out" in err


def test_demo_on_two_shots(few_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The whole demo, with fewer digits, shots and draws; the second goes on with the bench of the first."""
    from handful.cli import tour

    monkeypatch.setattr(
        tour, "write_digits", lambda folder: shutil.copytree(few_digits, folder, dirs_exist_ok=True)
    )
    tmp_path /= "demo"

    said: list[str] = []
    before: dict[Path, int] = {}
    for _ in range(2):
        out = Console(width=110, record=True, file=io.StringIO())
        tour.run_demo(tmp_path, out, said.append, shots=(1, 2), seeds=(1,))
        text = " ".join(out.export_text().split())
        cells = {path: path.stat().st_mtime_ns for path in (tmp_path / "bench" / "cells").iterdir()}
        assert before in ({}, cells)
        before = cells
    lines = [json.loads(row) for row in (tmp_path / "bench" / "results.jsonl").read_text().splitlines()]
    assert len(lines) == len(cells) == 12
    assert all(f"{100 * line['accuracy']:.1f}" in text for line in lines)
    assert {line["method"]: line["selection"] for line in lines if line["shots"] == 2} == {
        "auto": "support", "zero-shot": "fixed", "linear-probe:selection=support": "support",
        "logistic-probe": "support", "meta-adapter": "fixed", "tip-adapter:selection=support": "support",
    }  # fmt: skip
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert "few-shot, digits, mini" in (tmp_path / "bench" / "report.html").read_text()
    clf = handful.load(tmp_path / "best")
    assert clf.score([tmp_path / "digits/test/zero/0000.png"], ["zero"]) in (0, 1)
    assert "Best by cross-validation inside the 20 support images (no test image seen): " in text
    assert (
        f"on the test images {100 * clf.score(handful.ImageSet.from_folder(tmp_path / 'digits/test')):.1f}"
        in text
    )


# -- methods and backbones of the user's own ---------------------------------------------------------

MODULE = """
import handful
from handful.extend import CosineHead, Learned


class Mine(handful.FewShotClassifier):
    def __init__(self, backbone=None, *, strength=1.0):
        self.backbone, self.strength = backbone, strength

    def learn(self, task):
        return Learned(CosineHead(task.class_weights, task.scale * self.strength))
"""


@pytest.fixture
def own_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A method in a file of the current folder, which Python does not look into by itself."""
    (tmp_path / "my_method.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one not in ("", str(tmp_path))])
    yield "my_method:Mine"
    sys.modules.pop("my_method", None)


def test_a_method_of_the_current_folder(call, own_method: str, two_classes: Path, tmp_path: Path):
    image, model = next((two_classes / "lamp").iterdir()), tmp_path / "m"
    code, _, err = call("fit", two_classes, "--method", own_method, "-p", "strength=2", "--out", model)
    assert code == 0, err
    code, _, err = call("predict", model, image)
    assert (code, "which is not built in" in err) == (1, True)
    for words in (
        ["predict", model, image],
        ["evaluate", model, two_classes],
        ["explain", model, image],
        ["export", model, "--out", tmp_path / "m.onnx"],
    ):
        code, text, err = call(*words, "--method", own_method)
        assert code == 0, err
    assert "m.onnx: my_method:Mine, 2 classes" in text
    assert call("info", model)[0] == 0
    code, text, _ = call("evaluate", model, two_classes, "--method", own_method)
    assert "(my_method:Mine, selection: fixed)" in text
    code, _, err = call("compare", two_classes, "--methods", own_method, "--repeats", 1)
    assert code == 0, err
    out = tmp_path / "bench"
    (tmp_path / "parts").mkdir()
    for part in ("train", "test"):
        (tmp_path / "parts" / part).symlink_to(two_classes)
    words = ["--data", tmp_path / "parts", "--methods", own_method, "--shots", 1, "--seeds", 1, "--out", out]
    code, _, err = call("bench", "few-shot", *words)
    assert code == 0, err
    assert call("fit", two_classes, "--method", "my_method:Other")[0] == 1


def test_serving_a_method_of_the_current_folder(
    call, own_method: str, two_classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from handful import serve
    from handful.serve import load_models

    given: list[tuple[object, ...]] = []
    monkeypatch.setattr(serve, "run", lambda *arguments: given.append(arguments))
    for name, method in (("own", own_method), ("zero", "zero-shot")):
        assert call("fit", two_classes, "--method", method, "--out", tmp_path / name)[0] == 0
    assert call("serve", tmp_path / "own", tmp_path / "zero", "--method", own_method)[0] == 0
    folders, *_, methods = given[0]
    models = load_models(folders, None, methods)
    assert [type(clf).__name__ for clf in models.values()] == ["Mine", "ZeroShot"]
    with pytest.raises(handful.CheckpointError, match="not built in"):
        load_models(folders, None)


def test_the_current_folder_is_looked_into_only_for_an_import_path(
    call, own_method: str, two_classes: Path, tmp_path: Path
):
    (tmp_path / "json.py").write_text("raise SystemExit(9)")
    before = list(sys.path)
    assert call("fit", two_classes, "--method", "zero-shot", "--out", tmp_path / "m")[0] == 0
    words = ["--methods", "tip-adapter:alpha=2", "--shots", "1", "--out", tmp_path / "bench"]
    call("bench", "few-shot", "--data", two_classes, *words)
    assert sys.path == before


def test_a_backbone_that_moved_is_given(call, two_classes: Path, tmp_path: Path):
    config, weights = write_model(tmp_path / "tiny", TINY)
    model, image = tmp_path / "m", next((two_classes / "lamp").iterdir())
    assert call("fit", two_classes, "--backbone", config, "--weights", weights, "--out", model)[0] == 0
    moved = (tmp_path / "tiny").rename(tmp_path / "moved")
    here = ["--backbone", moved / config.name, "--weights", moved / weights.name]
    for words in (
        ["predict", model, image],
        ["evaluate", model, two_classes],
        ["explain", model, image],
        ["export", model, "--out", tmp_path / "m.onnx"],
    ):
        code, _, err = call(*words)
        assert code == 1, words
        assert str(config) in err
        assert "are no longer there. If it was moved, say where it is: --backbone" in err
        code, _, err = call(*words, *here)
        assert code == 0, err
    assert call("predict", model, image, *here[:2])[0] == 0  # its weights lie beside it
    write_model(moved, TINY, seed=1)
    code, _, err = call("predict", model, image, *here)
    assert (code, "fingerprint" in err) == (1, True)


def test_a_server_takes_the_backbone_it_is_given(call, two_classes: Path, tmp_path: Path):
    from handful.serve import make_server

    config, weights = write_model(tmp_path / "tiny", TINY)
    model = tmp_path / "m"
    assert call("fit", two_classes, "--backbone", config, "--weights", weights, "--out", model)[0] == 0
    moved = (tmp_path / "tiny").rename(tmp_path / "moved")
    with pytest.raises(handful.CheckpointError, match="no longer there"):
        make_server([model], port=0)
    make_server([model], str(moved / config.name), moved / weights.name, port=0)
    make_server([model], str(moved / config.name), port=0)
    for other in ("mini", str(write_model(tmp_path / "other", TINY, seed=1)[0])):
        with pytest.raises(handful.FingerprintError):
            make_server([model], other, port=0)


def test_weights_that_moved_alone_are_given(call, two_classes: Path, tmp_path: Path):
    config, weights = write_model(tmp_path / "tiny", TINY)
    model, image = tmp_path / "m", next((two_classes / "lamp").iterdir())
    assert call("fit", two_classes, "--backbone", config, "--weights", weights, "--out", model)[0] == 0
    moved = weights.rename(tmp_path / "elsewhere.safetensors")
    code, _, err = call("predict", model, image)
    assert code == 1
    assert f"with the weights {weights}; {weights} is no longer there" in err
    assert call("predict", model, image, "--weights", moved)[0] == 0
    config.rename(tmp_path / "new.json")
    code, _, err = call("predict", model, image, "--backbone", tmp_path / "new.json", "--weights", moved)
    assert code == 0, err
    assert call("fit", two_classes, "--out", tmp_path / "on_mini")[0] == 0
    code, _, err = call("predict", tmp_path / "on_mini", image, "--weights", moved)
    assert (code, "none without a backbone" in err) == (1, True)

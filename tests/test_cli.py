"""The command line, as people call it: results on stdout, the rest on stderr, honest exit codes."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest

import handful


@pytest.fixture(scope="module")
def model(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = handful.few_shot(handful.ImageSet.from_folder(digits / "train", verify=False), 2)
    return handful.TipAdapter("mini").fit(images).save(tmp_path_factory.mktemp("cli") / "model")


def test_fit_evaluate_predict_info(call, digits: Path, tmp_path: Path):
    out = tmp_path / "model"
    code, text, err = call("fit", digits / "train", "--shots", 2, "--seed", 3, "-p", "alpha=2", "--out", out)
    assert code == 0
    assert f"model: {out}" in text
    assert "1198 of 1198 files used" in err
    assert handful.load(out).alpha == 2

    code, text, _ = call("evaluate", out, digits / "test", "--json")
    facts = json.loads(text)
    assert code == 0
    assert facts["images"] == 599
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


def facts_names() -> tuple[str, ...]:
    from handful.cli.digits import NAMES

    return NAMES


@pytest.mark.parametrize("method", sorted(handful.METHODS))
def test_every_method_fits_from_the_command_line(call, two_classes: Path, tmp_path: Path, method: str):
    code, text, _ = call("fit", two_classes, "--method", method, "--out", tmp_path / "m", "--json")
    assert code == 0
    assert json.loads(text)["method"] == method


def test_a_backbone_from_files(call, two_classes: Path, tmp_path: Path):
    from conftest import TINY, write_model

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
        (["fit", "DATA", "--method", "tip"], 1, "one of ['clip-adapter', 'cocoop', 'coop'"),
        (["fit", "DATA", "--param", "gamma=1"], 1, "a parameter of tip-adapter"),
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


def test_demo_on_two_shots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The whole demo, with fewer shots and draws."""
    from rich.console import Console

    from handful.cli import tour

    curves = tour.few_shot_curves
    monkeypatch.setattr(tour, "SHOTS", (1, 2))
    monkeypatch.setattr(tour, "SEEDS", (1,))
    monkeypatch.setattr(tour, "few_shot_curves", lambda m, a, b: curves(m, a, b, (1, 2), (1,)))
    out = Console(record=True, width=110, quiet=True)
    said: list[str] = []
    tour.run_demo(tmp_path, out, said.append)
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert handful.load(tmp_path / "best").score([tmp_path / "digits/test/zero/0000.png"], ["zero"]) in (0, 1)
    assert "10 of 10 fits done" in " ".join(said)

"""The commands read a file once and decode it at most once, from the folder to the answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from handful.data import images as images_module

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Counter[str], Counter[str]]:
    """Count how often each file is read, and decoded; with a cache that is empty at first."""
    monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path / "cache"))
    read, decoded = Counter[str](), Counter[str]()
    read_file, decode_bytes = images_module.read_file, images_module.decode_bytes

    def reading(path: Path, *rest: object):
        read[Path(path).name] += 1
        return read_file(path, *rest)

    def decoding(data: bytes, name: str, *rest: object):
        decoded[Path(name).name] += 1
        return decode_bytes(data, name, *rest)

    monkeypatch.setattr(images_module, "read_file", reading)
    monkeypatch.setattr(images_module, "decode_bytes", decoding)
    return read, decoded


@pytest.mark.parametrize(
    ("method", "parameters"),
    [("tip-adapter", []), ("coop", ["-p", "epochs=1", "-p", "views=2", "-p", "length=2"]),
     ("mma", ["-p", "epochs=1", "-p", "views=2", "-p", "width=4"])],
)  # fmt: skip
def test_fit(
    method: str, parameters: list[str], few_digits: Path, tmp_path: Path, call: Call,
    counted: tuple[Counter[str], Counter[str]],
):  # fmt: skip
    read, decoded = counted
    words = ["fit", few_digits / "train", "--method", method, *parameters, "--out", tmp_path / "clf"]
    assert call(*words)[0] == 0
    assert len(read) == 100 and set(read.values()) == {1}
    assert len(decoded) == 100 and set(decoded.values()) == {1}
    if method != "mma":  # whose views are kept for one fit
        read.clear(), decoded.clear()
        assert call(*words)[0] == 0
        assert set(read.values()) == {1} and not decoded


def test_validation_and_meta_training(
    few_digits: Path, tmp_path: Path, call: Call, counted: tuple[Counter[str], Counter[str]]
):
    read, decoded = counted
    words = [
        "fit",
        few_digits / "train",
        "-p",
        "selection=val",
        "--method",
        "tip-adapter",
        "--validation",
        few_digits / "test",
    ]
    assert call(*words, "--out", tmp_path / "clf")[0] == 0
    assert len(read) == 160 and set(read.values()) == {1} and set(decoded.values()) == {1}
    read.clear(), decoded.clear()
    words = ["meta-train", few_digits / "train", "--epochs", "1", "--out", tmp_path / "net.safetensors"]
    assert call(*words)[0] == 0
    assert len(read) == 100 and set(read.values()) == {1} and max(decoded.values(), default=0) <= 1


@pytest.mark.parametrize("method", ["tip-adapter", "fine-tuning"])
def test_evaluate_and_predict(
    method: str, few_digits: Path, tmp_path: Path, call: Call, counted: tuple[Counter[str], Counter[str]]
):
    read, decoded = counted
    own = ["-p", "epochs=1", "-p", "views=0"] if method == "fine-tuning" else []
    assert call("fit", few_digits / "train", "--method", method, *own, "--out", tmp_path / "clf")[0] == 0
    read.clear(), decoded.clear()
    assert call("evaluate", tmp_path / "clf", few_digits / "test")[0] == 0  # beside zero-shot
    assert len(read) == 60 and set(read.values()) == {1} and set(decoded.values()) == {1}
    read.clear(), decoded.clear()
    assert call("predict", tmp_path / "clf", few_digits / "train")[0] == 0
    assert len(read) == 100 and set(read.values()) == {1}
    assert max(decoded.values(), default=0) <= 1


def test_a_bad_file_costs_one_more_reading_of_the_others(
    few_digits: Path, tmp_path: Path, call: Call, counted: tuple[Counter[str], Counter[str]]
):
    _, decoded = counted
    bad = next((few_digits / "train" / "two").iterdir())
    bad.unlink(), bad.write_bytes(b"no image")
    code, _, err = call("fit", few_digits / "train", "--on-error", "skip", "--out", tmp_path / "clf")
    assert code == 0 and "99 of 100 files used, 1 left out" in err
    assert set(decoded.values()) == {1}
    code, _, err = call("fit", few_digits / "train", "--out", tmp_path / "other")
    assert code == 1 and bad.name in err and "--on-error skip" in err
    assert not (tmp_path / "other").exists()

"""The replay of golden values passes, and fails when a number or a comparison is missing."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent / "parity"))
import replay


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["replay.py", str(folder), *options])
    return replay.main()


@pytest.mark.parametrize("options", [[], ["--plain"]], ids=["fast", "plain"])
def test_golden_values(
    shared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str]
):
    assert run(shared / "golden", monkeypatch, *options) == 0
    said = capsys.readouterr().out
    assert "0 bad" in said
    assert len([line for line in said.splitlines() if line.startswith("coop.")]) > 80


@pytest.mark.parametrize("change", ["off", "uncompared"])
def test_the_replay_fails_when_it_should(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
):
    for file in (shared / "golden").iterdir():
        shutil.copyfile(file, tmp_path / file.name)
    tensors = load_file(tmp_path / "features.safetensors")
    if change == "off":
        tensors["tip.logits"] = tensors["tip.logits"] + 2e-4
    else:
        tensors["tip.something_new"] = tensors["tip.logits"].clone()
    save_file(tensors, tmp_path / "features.safetensors")
    assert run(tmp_path, monkeypatch) == 1

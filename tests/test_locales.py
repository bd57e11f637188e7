"""The command line under the locales and encodings of machines: it starts, answers and loses no answer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
NAMES = ("红熊猫", "café ñandú", "emoji 🐼")
ODD = b"caf\xe9 \xff.png"
LOCALES = {"en_US.CP1252": "cp1252", "zh_CN.GBK": "gbk", "ja_JP.SJIS": "shift_jis", "C": "ascii"}
"""Locales as other systems have them, and Python's names of their encodings."""


def make_locale(name: str, folder: Path) -> bool:
    """Make a locale of this system's sources; say whether it has them (Debian: package locales)."""
    language, _, charset = name.partition(".")
    maker = shutil.which("localedef")
    if maker is None:
        return False
    charset = {"SJIS": "SHIFT_JIS"}.get(charset, charset)
    words = [maker, "--no-warnings=ascii", "-c", "-i", language, "-f", charset, str(folder / name)]
    subprocess.run(words, capture_output=True)
    return (folder / name).is_dir()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """A classifier of classes in three scripts, and images by names in two encodings and in none."""
    import handful

    folder = tmp_path_factory.mktemp("locales")
    for name, digit in zip(NAMES, ("one", "two", "three"), strict=True):
        place = folder / "train" / name
        place.mkdir(parents=True)
        for file in sorted((digits / "train" / digit).iterdir())[:2]:
            shutil.copy(file, place)
    images = folder / "images"
    images.mkdir()
    file = next((digits / "test" / "two").iterdir())
    for target in (
        os.fsencode(images) + b"/" + ODD,
        os.fsencode(images / "图像.png"),
        os.fsencode(images / "z.png"),
    ):
        shutil.copy(file, target)
    support = handful.ImageSet.from_folder(folder / "train", verify=False)
    handful.TipAdapter(handful.load_backbone("mini", device="cpu")).fit(support).save(folder / "model")
    return folder


def environment(**settings: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HANDFUL_CACHE", "HOME") if name in os.environ}
    plain = {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    return {**kept, **plain, "PYTHONDONTWRITEBYTECODE": "1", **settings}


def handful_in(folder: Path, settings: dict[str, str], *words: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "handful", *map(str, words)]
    return subprocess.run(command, cwd=folder, env=environment(**settings), capture_output=True)


@pytest.mark.parametrize("name", LOCALES)
def test_predict_answers_in_any_locale(saved: Path, name: str, tmp_path: Path):
    settings = {"LC_ALL": name, "LOCPATH": str(tmp_path)}
    if name != "C" and not make_locale(name, tmp_path):  # then at least stdout has its encoding
        settings = {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": LOCALES[name]}
    done = handful_in(saved, settings, "predict", "model", "images", "--json")
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert b"Traceback" not in done.stderr
    assert done.stdout.isascii()  # JSON has no other encoding than UTF-8
    answers = json.loads(done.stdout)["results"]
    assert len(answers) == 3
    assert not any("?" in answer["image"] for answer in answers)  # each file's own name, escaped
    assert {answer["predictions"][0]["class"] for answer in answers} <= set(NAMES)


def test_all_commands_in_the_poorest_locale(saved: Path, tmp_path: Path):
    """ASCII has none of the names."""
    settings = {"LC_ALL": "C"}
    fitted = handful_in(saved, settings, "fit", "train", "--out", tmp_path / "model", "--json")
    assert fitted.returncode == 0, fitted.stderr.decode(errors="replace")
    facts = json.loads((tmp_path / "model" / "head.json").read_bytes())
    assert sorted(facts["class_names"]) == sorted(NAMES)  # UTF-8, whatever the locale
    about = handful_in(saved, settings, "info", tmp_path / "model")
    assert (about.returncode, about.stdout.isascii()) == (0, True), about.stderr
    assert rb"\u7ea2\u718a\u732b" in about.stdout
    why = handful_in(saved, settings, "explain", tmp_path / "model", saved / "images" / "z.png", "--json")
    assert (why.returncode, why.stdout.isascii()) == (0, True), why.stderr
    assert set(json.loads(why.stdout)["margins"]) == set(NAMES)


def test_whatever_an_encoding_lacks_is_escaped_as_json_is(monkeypatch: pytest.MonkeyPatch, capsysbinary):
    import io

    from handful.cli.common import echo, echo_json, escape_what_has_no_code, say

    text = "é ñ 红 🐼 \udcff"
    for encoding in ("ascii", "cp1252", "gbk", "cp932", "utf-8", "cp437", "euc_kr", "utf-16-le"):
        out, err = io.BytesIO(), io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding))
        monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(err, encoding))
        escape_what_has_no_code()
        echo(json.dumps({"a": text}, ensure_ascii=False))
        echo_json({"a": text})
        say(text)
        plain, own = out.getvalue().decode(encoding).splitlines()
        assert json.loads(plain) == json.loads(own) == {"a": text}
        assert own.isascii() or encoding == "utf-8"
        assert json.loads(f'"{err.getvalue().decode(encoding).strip()}"') == text
    monkeypatch.undo()


def test_a_report_of_a_folder_whose_name_is_no_unicode():
    from handful.files import escaped
    from handful.report.tables import Group

    assert Group("few-shot", "b\udcff", "mini", []).title == r"few-shot, b\udcff, mini"
    assert escaped("红 🐼") == "红 🐼"


def test_a_stream_that_is_no_file_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    import io

    from handful.cli.common import escape_what_has_no_code

    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", None)
    escape_what_has_no_code()

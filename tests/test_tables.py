"""Tables as spreadsheets, scripts and people write them, and what is said of those that can't be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import handful
from handful.data import open_dataset

LAMP, PANDA = "lamp/1.png", "red_panda/0.png"


@pytest.fixture
def folder(two_classes: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The images, with some names of their own, and a home and a working folder elsewhere."""
    for name in ("lamp/a, b.png", "lamp/é 1.png", "lamp/c#2.png"):
        (two_classes / name).write_bytes((two_classes / LAMP).read_bytes())
    (two_classes.parent / "work").mkdir()
    monkeypatch.chdir(two_classes.parent / "work")
    monkeypatch.setenv("HOME", str(two_classes.parent))
    return two_classes


def read(folder: Path, text: str | bytes, name: str = "list.csv", **given: object) -> handful.ImageSet:
    table = folder / name
    table.write_bytes(text.encode() if isinstance(text, str) else text)
    return handful.ImageSet.from_table(table, **given)  # type: ignore[arg-type]


def pairs(images: handful.ImageSet) -> list[tuple[str, str]]:
    """The name of each file with its class."""
    labels = [images.class_names[label] for label in images.labels]
    return [(Path(str(item)).name, label) for item, label in zip(images.items, labels, strict=True)]


WANTED = [("1.png", "lamp"), ("0.png", "red panda")]

FORMS = {
    "capitals": f"Path,Label\n{LAMP},lamp\n{PANDA},red_panda\n",
    "spaces": f" PATH , Label\n{LAMP} ,  lamp\n{PANDA}, red_panda \n",
    "semicolons": f"path;label\n{LAMP};lamp\n{PANDA};red_panda\n",
    "tabs": f"path\tlabel\n{LAMP}\tlamp\n{PANDA}\tred_panda\n",
    "bars": f"path|label\n{LAMP}|lamp\n{PANDA}|red_panda\n",
    "Excel's first line": f"\ufeffsep=;\r\npath;label\r\n{LAMP};lamp\r\n{PANDA};red_panda\r\n",
    "a blank first line": f"\n\npath,label\n\n{LAMP},lamp\n,\n{PANDA},red_panda\n,,\n",
    "old line ends": f"path,label\r{LAMP},lamp\r{PANDA},red_panda\r",
    "other columns": f",id,path,label,notes\n0,7,{LAMP},lamp,\"two\nlines\"\n1,8,{PANDA},red_panda,\n",
    "quotes": f'"path","label"\n"{LAMP}","lamp"\n"{PANDA}","red_panda"\n',
    "quotes and spaces": f'"path" , "label"\n"{LAMP}" , "lamp"\n"{PANDA}" , "red_panda"\n',
    "single quotes": f"'path','label'\n'{LAMP}','lamp'\n'{PANDA}','red_panda'\n",
    "other names": f"Image Path,Class-Name\n{LAMP},lamp\n{PANDA},red_panda\n",
    "one name of several": f"file,path,category,label\nx,{LAMP},x,lamp\nx,{PANDA},x,red_panda\n",
    "backslashes": "path,label\nlamp\\1.png,lamp\n.\\red_panda\\0.png,red_panda\n",
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", ["csv", "tsv", "txt"])
def test_tables_in_any_form(folder: Path, form: str, suffix: str):
    """inspect_ai#5353, datasets#4814."""
    assert pairs(read(folder, FORMS[form], f"list.{suffix}")) == WANTED


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_tables_in_the_encodings_of_spreadsheets(folder: Path, encoding: str):
    images = read(folder, f"path\tlabel\nlamp/é 1.png\tété\n{PANDA}\ty\n".encode(encoding))
    assert pairs(images) == [("é 1.png", "été"), ("0.png", "y")]


ROWS = [{"path": LAMP, "label": "lamp"}, {"path": PANDA, "label": "red_panda"}]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", "\n".join(map(json.dumps, ROWS))),
        ("a.json", "\n\n".join(map(json.dumps, ROWS))),
        ("a.json", json.dumps(ROWS, indent=1)),
        ("a.json", json.dumps([{"File": row["path"], "Class": row["label"]} for row in ROWS])),
        ("a.txt", json.dumps(ROWS)),
    ],
)
def test_tables_in_json(folder: Path, name: str, text: str):
    assert pairs(read(folder, text, name)) == WANTED


def test_whole_numbers_are_labels_in_any_form(folder: Path):
    assert read(folder, json.dumps([{"path": LAMP, "label": 7}]), "a.json").class_names == ("7",)
    assert read(folder, f"path,label\n{LAMP},7\n").class_names == ("7",)


def test_paths_as_any_system_writes_them(folder: Path):
    (folder.parent / "work/own.png").write_bytes((folder / LAMP).read_bytes())
    (folder / "own.png").write_bytes((folder / PANDA).read_bytes())
    (folder.parent / "work/other.png").write_bytes((folder / LAMP).read_bytes())
    uri = (folder / "lamp/é 1.png").as_uri()
    written = {
        "own.png": folder / "own.png",  # the table's folder goes before the working folder
        "other.png": folder.parent / "work/other.png",
        str(folder / LAMP): folder / LAMP,
        uri: folder / "lamp/é 1.png",
        uri.replace("file://", "FILE://localhost"): folder / "lamp/é 1.png",
        f"file://{folder}/lamp/c#2.png": folder / "lamp/c#2.png",
        "file:lamp/1.png": folder / LAMP,
        "~/data/lamp/1.png": folder / LAMP,
        "lamp/e\u0301 1.png": folder / "lamp/é 1.png",
        '"lamp/a, b.png"': folder / "lamp/a, b.png",
    }
    images = read(folder, "path,label\n" + "".join(f"{path},x\n" for path in written))
    assert [Path(str(item)) for item in images.items] == list(written.values())


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("no.png", r"no such file; tried from the table's folder \S+/data, from the working folder \S+/work"),
        ("a\\no.png", r"from the working folder \S+/work, with / for \\ "),
        ("/no/no.png", r"tried the path as it is written \(row 3\)"),
        ("C:\\no\\no.png", r"tried the path as it is written, with / for \\ "),
        ("file:///no/a%20b.png", "as it is written, as the address of /no/a b.png"),
        ("~/no.png", "with ~ as the home folder"),
        ("https://a.org/b.png", "https://a.org/b.png is an address, expected a file: download it first"),
        ("lamp", "a folder, expected a file"),
        ("x" * 300, "no such file"),
    ],
)
def test_a_path_that_leads_nowhere_says_what_was_tried(folder: Path, path: str, reason: str):
    text = f"path,label\n{PANDA},y\n{path},x\n"
    for verify in (True, False):
        with pytest.raises(handful.DataError, match=reason):
            read(folder, text, verify=verify)
        report = read(folder, text, verify=verify, on_error="skip").report
        assert report is not None
        assert (report.found, report.kept, report.empty_classes) == (2, 1, ("x",))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{LAMP},lamp\n", r"row 1: expected the columns path and label.*A header in the first line"),
        (f"path label\n{LAMP} lamp\n", "none is called path"),
        (f"image,file,label\n{LAMP},{LAMP},x\n", r"2 columns for path, \['image', 'file'\]: call one `path`"),
        (f"Path,path,label\n{LAMP},{LAMP},x\n", "2 columns for path"),
        (f"path,label\n{LAMP}\n", "row 2: expected the columns path and label"),
        ("path,label\nlamp/a, b.png,lamp\n", r"row 2: got 3 cells, the header has 2. Put .* double quotes"),
        (f'path,label\n"{LAMP},x\n{PANDA},y\n', "is not CSV"),
        ("path,label\n", "has no rows"),
        ("path,label\n1.png,é\n".encode("cp1252"), "expected a readable UTF-8 file.*save it as `CSV UTF-8`"),
        (b"PK\x03\x04", "which is an Excel workbook"),
        (b"\x89PNG\r\n", "which is an image"),
        ('{"path": ["a.png"], "label": ["x"]}', 'got a JSON dict.*orient="records"'),
        ('[{"path": "a.png", "label": null}]', "row 1: expected the columns path and label, all texts"),
        ('[{"path": "a.png"', "not JSON"),
        ("[1]", "line 1: expected an object"),
    ],
)
def test_what_is_no_table_is_refused_in_a_sentence(folder: Path, text: str | bytes, reason: str):
    with pytest.raises(handful.DataError, match=f"(?s){reason}"):
        read(folder, text)


def test_what_a_table_lists_of_systems_and_archives_is_counted(folder: Path):
    left = ["__MACOSX/lamp/._1.png", "lamp/.DS_Store", "Thumbs.db", "lamp\\._0.png"]
    images = read(folder, FORMS["capitals"] + "".join(f"{path},lamp\n" for path in left))
    assert images.report is not None
    assert (pairs(images), list(images.report.passed_over)) == (WANTED, left)


def test_notes_say_what_was_read_for_what(folder: Path):
    images = read(folder, f"Image,class,split\n{LAMP},a,train\n{PANDA},b,Validation\n")
    assert images.report is not None
    assert images.report.notes == (
        "path and label are read from the columns Image and class.",
        "the rows are of several parts (train 1, val 1); all are used. Give a table of one part alone.",
    )
    assert read(folder, f"path,label,split\n{LAMP},a,train\n").report.notes == ()  # type: ignore[union-attr]


def test_every_command_reads_them(call, folder: Path, tmp_path: Path):
    table = folder / "list.TSV"
    table.write_text("File;Class\nlamp\\0.png;lamp\nlamp\\1.png;lamp\nred_panda\\0.png;red_panda\n")
    fit = ("fit", table, "--method", "zero-shot", "--validation", table, "--out", tmp_path / "m")
    assert call(*fit)[0] == 0
    code, text, err = call("evaluate", tmp_path / "m", table)
    assert (code, "3 images" in text, "read from the columns File and Class" in err) == (0, True, True)
    code, _, err = call("evaluate", tmp_path / "m", folder / "no.tsv")
    assert (code, "No such file" in err) == (1, True)
    code, _, err = call("evaluate", tmp_path / "m", folder / "v1.0")
    assert (code, "which is not there" in err) == (1, True)
    table.write_text(f"Image\tLabel\tPart\n{LAMP}\tlamp\tTraining\n{PANDA}\tlamp\teval\n")
    data = open_dataset(table)
    assert {part: len(images) for part, images in data.parts.items()} == {"train": 1, "test": 1}


def test_open_dataset_names_missing_files(folder: Path):
    table = folder / "list.csv"
    table.write_text(f"path,label,split\n{LAMP},lamp,train\nno.png,lamp,test\n")
    with pytest.raises(handful.DataError, match=r"1 of 2 files used.*\n.*no\.png: no such file; tried"):
        open_dataset(table)

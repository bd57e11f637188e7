"""Templates and prompts in every form that people have them in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import handful
from handful.data.templates import prompts_of, resolve_templates

NAMES = ["red_panda", "cat"]
PROMPTS = {
    "Red Panda": ["A red panda has a ringed tail.", "Rust-coloured fur."],
    "CAT": "A cat has whiskers.",
}
"""By class: other capitals, a space for the underscore, and a text alone."""


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("a {}.", "a {}."), ("a {c}.", "a {}."), ("a {class}.", "a {}."), ("a {classname}.", "a {}."),
        ("a {class_name}.", "a {}."), ("a {Name}.", "a {}."), ("a { label }.", "a {}."), ("{0}", "{}"),
        ("{}", "{}"), ("a {red} {}.", "a {red} {}."), ("a {c} {}.", "a {c} {}."), ("{c}, a {c}", "{}, a {}"),
        ("a {{x}} {c}", "a {{x}} {}"), ("一张{c}的照片", "一张{}的照片"),
    ],
)  # fmt: skip
def test_what_stands_for_the_name(given: str, read: str):
    assert resolve_templates(given) == (read,) == resolve_templates([given])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_text_file(tmp_path: Path, encoding: str):
    file = tmp_path / "prompts.txt"
    lines = ["# of mine", "", "a {c} à vendre.", "  the {}  ", "{class}", ""]
    file.write_text("\r\n".join(lines), encoding=encoding, newline="")
    assert resolve_templates(str(file)) == resolve_templates(file) == ("a {} à vendre.", "the {}", "{}")


@pytest.mark.parametrize(
    ("content", "read"),
    [
        (["a {c}.", "the {}."], ("a {}.", "the {}.")),
        ({"cifar10": ["a {c}.", "the {c}."]}, ("a {}.", "the {}.")),
        ({"cat": ["A cat."], "dog": ["A dog.", "A {c}."]}, {"cat": ("A cat.",), "dog": ("A dog.", "A {}.")}),
        ({"imagenet1k": {"cat": ["A cat."], "dog": "A dog."}}, {"cat": ("A cat.",), "dog": ("A dog.",)}),
        ("a {c}.", ("a {}.",)),
    ],
)  # fmt: skip
def test_a_json_file(tmp_path: Path, content: Any, read: Any):
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps(content))
    assert resolve_templates(file) == read
    (tmp_path / "several.json").write_text(json.dumps({"mine": content, "other": ["no {c}"]}))
    assert resolve_templates(f"{tmp_path / 'several.json'}#mine") == read


def test_functions_as_open_clip_has_them():
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    assert resolve_templates(OPENAI_IMAGENET_TEMPLATES) == resolve_templates("imagenet80")


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ("a {}\nno place\n", "'no place' in line 2"), ("", "hold nothing"), ("# a {}\n\n", "hold nothing"),
        ('["a {}", "b"]', "'b' in entry 2"), ('{"cat": []}', "under 'cat'"), ('{"cat": [3]}', "under 'cat'"),
        ('{"": ["a"]}', "under ''"), ('{"a": {"cat": ["x"]}, "b": {"cat": ["y"]}}', "'a', 'b'.*FILE#NAME"),
        ('{"a": {"cat": ["x"]}, "b": ["y"]}', "under 'a'"), (b"a \xff {}", "UTF-8"), ("a photo", "line 1"),
    ],
)  # fmt: skip
def test_files_that_hold_no_templates(tmp_path: Path, content: str | bytes, hint: str):
    file = tmp_path / "prompts.txt"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(handful.ParameterError, match=f"(?s)prompts.txt.*{hint}|{hint}"):
        resolve_templates(file)


def test_texts_that_are_nothing(tmp_path: Path):
    (tmp_path / "broken.json").write_text("{'cat': ['a']}")
    broken = tmp_path / "broken.json"
    for given, hint in [
        ("nowhere.txt", "no file 'nowhere.txt'"), (tmp_path, "no file"), ("a photo", r"one of \["),
        ({}, "hold nothing"), ({"cat": 3}, "under 'cat'"), ({3: ["x"]}, "under 3"), ([], "templates="),
        (["a {}", "b"], "templates="), (3, "templates=3"), ("", "templates="), ([b"a {}"], "templates="),
        (broken, "not JSON"), (f"{broken}#x", "not JSON"), ("x" * 5000, "templates="),
        (None, "templates=None"),
    ]:  # fmt: skip
        with pytest.raises(handful.ParameterError, match=hint):
            resolve_templates(given)
    (tmp_path / "two.json").write_text(json.dumps({"a": ["x {}"], "b": ["y {}"]}))
    with pytest.raises(handful.ParameterError, match=r"names: \['a', 'b'\]"):
        resolve_templates(f"{tmp_path / 'two.json'}#c")
    with pytest.raises(handful.ParameterError, match=r"classes \['cat'\].*several data sets.*FILE#NAME"):
        prompts_of(["cat"], resolve_templates(tmp_path / "two.json"))


def test_prompts_by_class_are_found_by_the_rule_of_names(tiny: handful.Backbone):
    texts = [["A red panda has a ringed tail.", "Rust-coloured fur."], ["A cat has whiskers."]]
    found = handful.class_weights(tiny, NAMES, PROMPTS)
    for row, own in zip(found, texts, strict=True):
        features = torch.nn.functional.normalize(tiny.encode_text(tiny.tokenize(own)), dim=-1)
        torch.testing.assert_close(row, torch.nn.functional.normalize(features.mean(0), dim=0))
    with pytest.raises(handful.ParameterError, match=r"without prompts for the classes \['owl'\].*'CAT'"):
        handful.class_weights(tiny, [*NAMES, "owl"], PROMPTS)
    with pytest.raises(handful.ParameterError, match=r"'CAT' and for 'cat'"):
        handful.class_weights(tiny, NAMES, PROMPTS | {"cat": "A cat."})
    more = PROMPTS | {"owl": ["An owl."], "Owl": ["Owls."]}  # of no class that is asked for
    torch.testing.assert_close(handful.class_weights(tiny, NAMES, more), found)


def test_every_form_of_the_same_templates_gives_the_same_numbers(tiny: handful.Backbone, tmp_path: Path):
    (tmp_path / "t.txt").write_text("a {c}.\nthe {class}.\n")
    (tmp_path / "t.json").write_text('["a {}.", "the {c}."]')
    by_class = {name: [f"a {name}.", f"the {name}."] for name in ("red panda", "cat")}
    expected = handful.class_weights(tiny, NAMES, ["a {}.", "the {}."])
    for given in (
        str(tmp_path / "t.txt"),
        tmp_path / "t.json",
        by_class,
        ("a {name}.", lambda c: f"the {c}."),
    ):
        assert torch.equal(handful.class_weights(tiny, NAMES, given), expected)


READING = [
    "zero-shot", "gda", "kernel-ridge", "ss-text", "tip-adapter", "linear-probe",
    "meta-adapter", "clip-adapter", "text-tuning", "tip-adapter-f", "ape", "ape-t", "tda", "fine-tuning",
    "linear-adapter", "taskres", "lp-plus-plus", "cross-modal-probe", "prolip", "auto",
]  # fmt: skip


def test_all_methods_that_read_templates_are_tried_here():
    import inspect

    have = [name for name, cls in handful.METHODS.items() if "templates" in inspect.signature(cls).parameters]
    assert sorted(have) == sorted(READING)


@pytest.mark.parametrize("name", READING)
def test_prompts_by_class_are_saved_with_the_classifier(
    name: str, tiny: handful.Backbone, mini: handful.Backbone, photos: handful.ImageSet, tmp_path: Path
):
    tiny = mini if name == "meta-adapter" else tiny  # whose network ships
    by_class = {label: [f"I see a {label}.", "Look here!"] for label in photos.class_names} | {
        "owl": ["An owl."]
    }
    file = tmp_path / "cupl.json"
    file.write_text(json.dumps(by_class))
    few = {"epochs": 1, "views": 0} if handful.METHODS[name].trains else {}
    few |= {"iterations": 5} if name == "cross-modal-probe" else {}
    clf = handful.METHODS[name](tiny, templates=file, **few).fit(photos)
    plain = handful.METHODS[name](tiny, **few).fit(photos)
    expected = clf.decision_function(photos)
    assert not np.allclose(expected, plain.decision_function(photos))
    file.unlink()
    again = handful.load(clf.save(tmp_path / "saved"), backbone=tiny)
    np.testing.assert_array_equal(again.decision_function(photos), expected)
    assert again.templates_ == clf.templates_ == {
        label: tuple(by_class[label]) for label in photos.class_names
    }  # fmt: skip
    assert again.templates == by_class
    assert "by class, as" in (tmp_path / "saved/README.md").read_text()
    fresh = type(again)(tiny, **again.fitted_.parameters).fit(photos)  # as calibration does
    np.testing.assert_allclose(fresh.decision_function(photos), expected, atol=1e-5)


def test_classes_that_come_later(tiny: handful.Backbone, photos: handful.ImageSet, tmp_path: Path):
    by_class = {label: [f"I see a {label}."] for label in photos.class_names} | {"Owl": ["An owl."]}
    clf = handful.TipAdapter(tiny, templates=by_class).fit(photos)
    clf = handful.load(clf.save(tmp_path / "saved"), backbone=tiny).add_class("owl")
    row = clf.class_names_.index("owl")
    torch.testing.assert_close(
        clf.head_.tensors()["class_weights"][row], handful.class_weights(tiny, ["owl"], by_class)[0]
    )
    assert clf.templates_["owl"] == ("An owl.",)
    with pytest.raises(
        handful.ParameterError, match=r"prompts by class, and has none for 'emu'.*class_weight="
    ):
        clf.add_class("emu", photos.items[:1])
    own = handful.class_weights(tiny, ["emu"], {"emu": ["An emu.", "It can't fly."]})[0]
    clf.add_class("emu", photos.items[:1], class_weight=own)
    again = handful.load(clf.save(tmp_path / "more"), backbone=tiny)
    np.testing.assert_array_equal(again.decision_function(photos), clf.decision_function(photos))
    zero = handful.ZeroShot(tiny, templates=by_class).fit(class_names=photos.class_names)
    other = zero.with_classes(["owl", photos.class_names[0]])
    assert set(other.templates_) == {"owl", photos.class_names[0]}
    expected = handful.class_weights(tiny, other.class_names_, by_class)
    torch.testing.assert_close(other.head_.tensors()["class_weights"], expected)
    with pytest.raises(handful.ParameterError, match=r"without prompts for the classes \['emu'\]"):
        zero.with_classes(["emu"])


def test_mma_reads_one_prompt_of_each_class(tiny: handful.Backbone, tmp_path: Path):
    from handful.prompts import template_tokens

    (tmp_path / "t.txt").write_text("a photo of a {c}.\n")
    expected = template_tokens(tiny, NAMES, "a photo of a {}.")[0]
    by_class = {"cat": ["a photo of a cat."], "red panda": "a photo of a red panda."}
    for given in ("a photo of a {class}.", tmp_path / "t.txt", by_class):
        assert torch.equal(template_tokens(tiny, NAMES, given)[0], expected)
    with pytest.raises(handful.ParameterError, match=r"template=.*one prompt of each class, not 2"):
        template_tokens(tiny, NAMES, ["a {}", "the {}"])

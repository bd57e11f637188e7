"""Templates and prompts, in the forms that people have them in: texts, files, the catalogue, by class."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

from handful.data.catalog import find_templates, template_names
from handful.data.names import name_key
from handful.errors import ParameterError, unexpected
from handful.files import read_file

Prompts: TypeAlias = tuple[str, ...] | dict[str, tuple[str, ...]]
"""Templates, texts that hold `{}` where the class name goes; or by class, the prompts of each."""
PLACEHOLDER = re.compile(r"\{\s*(?:0|c|cls|class|class[ _]?name|name|label|category)?\s*\}", re.IGNORECASE)
"""What stands for the class name where a text holds no `{}`."""
MOST_BYTES = 2**26
"""Of a file of prompts; those of CuPL for ImageNet have 4 MB."""
FORMS = (
    "a text that holds {}, {c} or {class} where the class name goes, a list of such, prompts by class as "
    '{"cat": ["a cat, which ..."]}, a file of these (.txt, one a line, or .json)'
)


def resolve_templates(templates: Any, argument: str = "templates") -> Prompts:
    """Read templates in any form.

    Parameters
    ----------
    templates
        A text with `{}`, `{c}` or `{class}` where the class name goes (other braces stay as they are, and
        where there is a `{}`, only that one counts); a list of such, or of functions from a name to a text,
        as open_clip has them; a name in the catalogue; prompts by class, `{"cat": ["A cat is ..."]}`
        (CuPL's form, Pratt et al. 2023); or the path of a file. A text file has a template in each line,
        but for empty ones and those that begin with `#`. A JSON file has a list, or prompts by class; of
        one with several data sets, `FILE#NAME` is one.
    argument
        What errors call them.

    Returns
    -------
    tuple or dict
        Templates with `{}`, or the prompts of each class.

    Raises
    ------
    ParameterError
        They are of no such form.
    """
    if isinstance(templates, str) and (text := as_template(templates)):
        return (text,)
    if isinstance(templates, str) and templates in template_names():
        return find_templates(templates)
    if isinstance(templates, str | Path):
        return _from_file(templates, argument)
    if isinstance(templates, Mapping):
        return _by_class(templates, argument)
    if isinstance(templates, Sequence) and templates:
        found = [as_template(text("{}") if callable(text) else text) for text in templates]
        if all(found):
            return tuple(text for text in found if text)
    raise unexpected(argument, templates, f"{FORMS}, or one of {template_names()}")


def as_template(text: object) -> str | None:
    """Give a template with `{}` where the class name goes; None for a text that has no such place."""
    if not isinstance(text, str):
        return None
    plain = text if "{}" in text else PLACEHOLDER.sub("{}", text)
    return plain if "{}" in plain else None


def as_parameter(templates: Any, argument: str = "templates") -> Any:
    """Give templates as a checkpoint records them: in place of a file, or of functions, what these hold."""
    named = isinstance(templates, str) and (as_template(templates) or templates in template_names())
    listed = isinstance(templates, list | tuple) and all(isinstance(text, str) for text in templates)
    return templates if named or listed else resolve_templates(templates, argument)


def prompts_of(names: Sequence[str], templates: Prompts) -> list[tuple[str, ...]]:
    """Give the prompts of each class.

    Parameters
    ----------
    names
        C class names. Prompts by class are found without regard to case, underscores as spaces.
    templates
        As `resolve_templates` gives them.

    Raises
    ------
    ParameterError
        A class has no prompts, or two entries.
    """
    if isinstance(templates, tuple):
        return [tuple(text.replace("{}", name) for text in templates) for name in names]
    keys: dict[str, list[str]] = {}
    for key in templates:
        keys.setdefault(name_key(key), []).append(key)
    missing = [name for name in names if name_key(name) not in keys]
    if missing:
        none_is_there = len(missing) == len(names) and _all_hold_places(templates)
        several = " If these are of several data sets, give those of one: FILE#NAME." if none_is_there else ""
        raise ParameterError(
            f"Got templates without prompts for the classes {missing[:8]}{'...' * (len(missing) > 8)}; there "
            f"are some for {list(templates)[:8]}{'...' * (len(templates) > 8)}. Add prompts for these, or "
            f"give a text with {{}} that serves every class.{several}"
        )
    twice = [keys[name_key(name)] for name in names if len(keys[name_key(name)]) > 1]
    if twice:
        raise ParameterError(
            f"Got templates with prompts for {' and for '.join(map(repr, twice[0]))}, which are one class "
            "name. Merge them, or rename one."
        )
    own = [(name, templates[keys[name_key(name)][0]]) for name in names]
    return [tuple(text.replace("{}", name) for text in texts) for name, texts in own]


def has_prompts(name: str, templates: Prompts) -> bool:
    """Whether there are prompts for a class."""
    return isinstance(templates, tuple) or name_key(name) in map(name_key, templates)


def for_classes(names: Sequence[str], templates: Prompts) -> Prompts:
    """Keep the prompts of some classes, under the names that these have."""
    if isinstance(templates, tuple):
        return templates
    return dict(zip(names, prompts_of(names, templates), strict=True))


def _from_file(given: str | Path, argument: str) -> Prompts:
    """Read templates from a file, or of one JSON file those under a name, `FILE#NAME`."""
    path, key = Path(given), ""
    if not _is_file(path) and "#" in str(given):
        before, _, key = str(given).rpartition("#")
        path = Path(before)
    if not _is_file(path):
        no_file = f"There is no file {str(path)!r}." if path.suffix or isinstance(given, Path) else ""
        raise unexpected(argument, str(given), f"{FORMS}, or one of {template_names()}", no_file)
    what, text = f"{argument} of {path}", _text(path)
    must_be_json = bool(key) or path.suffix.lower() == ".json"
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        if must_be_json:
            raise ParameterError(
                f"Got {what}, which is not JSON ({error}). Mend it, or write a template in each line of a "
                ".txt file."
            ) from error
        return _lines(text, what)
    if not must_be_json and not (found and isinstance(found, list | dict)):
        return _lines(text, what)  # `{}` alone is a template
    if key:
        if not isinstance(found, dict) or key not in found:
            names = list(found)[:12] if isinstance(found, dict) else "a list, without names"
            raise ParameterError(f"Got {what} under the name {key!r}, expected one of its names: {names}.")
        found = found[key]
    if isinstance(found, dict):
        return _by_class(found, what)
    texts = found if isinstance(found, list) else [found]
    return _texts(texts, what, [f"entry {number}" for number in range(1, len(texts) + 1)])


def _is_file(path: Path) -> bool:
    with suppress(OSError):  # a text that is too long for a path
        return path.is_file()
    return False


def _text(path: Path) -> str:
    """Read a text file, as UTF-8 or with a mark of UTF-16, as Windows writes."""
    try:
        data = read_file(path, MOST_BYTES)
        wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return data.decode("utf-16" if wide else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ParameterError(f"Got templates={str(path)!r}, expected a file of UTF-8 text: {why}.") from error


def _lines(text: str, what: str) -> Prompts:
    """Read a template from each line."""
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    kept = [(number, line) for number, line in lines if line and not line.startswith("#")]
    return _texts([line for _, line in kept], what, [f"line {number}" for number, _ in kept])


def _texts(texts: Sequence[object], what: str, places: Sequence[str]) -> tuple[str, ...]:
    """Check that each text is a template."""
    if not texts:
        raise ParameterError(f"Got {what}, which hold nothing, expected at least one text with {{}}.")
    found = [as_template(text) for text in texts]
    for place, text, template in zip(places, texts, found, strict=True):
        if template is None:
            raise ParameterError(
                f"Got {what} with {text!r} in {place}, expected a text that holds {{}}, {{c}} or {{class}} "
                'where the class name goes. Texts of one class belong under its name, as {"cat": [...]}.'
            )
    return tuple(text for text in found if text)


def _by_class(given: Mapping[Any, Any], what: str) -> Prompts:
    """Read prompts by class; of one data set alone, what is below its name."""
    if given and all(isinstance(value, Mapping) for value in given.values()):
        if len(given) > 1:
            raise ParameterError(
                f"Got {what} of several data sets, {list(given)[:12]}, expected those of one: FILE#NAME, or "
                "the dictionary under the name."
            )
        return _by_class(next(iter(given.values())), what)
    if not given:
        raise ParameterError(f"Got {what} that hold nothing, expected {FORMS}.")
    found: dict[str, tuple[str, ...]] = {}
    for key, value in given.items():
        texts = [value] if isinstance(value, str) else value
        if not isinstance(key, str) or not key.strip() or not _are_prompts(texts):
            raise ParameterError(
                f"Got {what} with {value!r:.60} under {key!r}, expected a class name and a list of at least "
                "one prompt."
            )
        found[key] = tuple(as_template(text) or text for text in texts)
    if len(found) == 1 and _all_hold_places(found):  # of one data set, by its name
        return next(iter(found.values()))
    return found


def _are_prompts(texts: object) -> bool:
    whole = isinstance(texts, list | tuple) and len(texts) > 0
    return whole and all(isinstance(text, str) and text.strip() for text in texts)  # type: ignore[attr-defined]


def _all_hold_places(templates: Mapping[str, Sequence[str]]) -> bool:
    return all("{}" in text for texts in templates.values() for text in texts)

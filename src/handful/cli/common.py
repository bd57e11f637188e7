"""Options and small helpers that several commands share."""

from __future__ import annotations

import codecs
import io
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from handful.data import ImageSet
    from handful.estimator import FewShotClassifier

T = TypeVar("T")
Model = Annotated[Path, typer.Argument(help="A folder that `handful fit` wrote.")]
Data = Annotated[
    Path,
    typer.Argument(help="A folder of class folders, or a table (CSV, TSV, JSON) with path and label."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
OnError = Annotated[str, typer.Option(help="What bad files do: raise, or skip with a report.")]
BackboneName = Annotated[str, typer.Option(help="mini, model/tag, hf-hub:org/name, or a config.json.")]
Weights = Annotated[Path | None, typer.Option(help="The weights, for a config.json.")]


def _allow_pixels(context: typer.Context, most: float | None) -> float | None:
    """Allow images of so many million pixels while the command runs."""
    if most is not None:
        from handful.data.limits import megapixels

        context.with_resource(megapixels(most))
    return most


Megapixels = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        callback=_allow_pixels,
        help="Of an image, at most; 64 unless the environment's HANDFUL_MEGAPIXELS says otherwise.",
    ),
]
OwnMethod = Annotated[
    str | None,
    typer.Option("--method", help="The class, pkg.module:Class, for a method that is not built in."),
]
OwnBackbone = Annotated[
    str | None,
    typer.Option("--backbone", help="Where to load the backbone from, in place of what the classifier says."),
]


def _escape(error: UnicodeError) -> tuple[str, int]:
    """Write what an encoding lacks as JSON would, so that JSON stays JSON."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def escape_what_has_no_code() -> None:
    r"""Let stdout and stderr write any text: `\u7ea2` where their encoding has no such character.

    Class and file names are in any language, and a file name need not be Unicode at all.
    """
    codecs.register_error("handful.escape", _escape)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="handful.escape")


def echo(text: str, end: str = "\n") -> None:
    """Write a line to stdout, at once: it is not lost if the next step fails."""
    print(text, end=end, flush=True)


def as_json_text(value: object) -> str:
    """Write a value as JSON for stdout: in UTF-8, and in ASCII where stdout has another encoding."""
    encoding = codecs.lookup(getattr(sys.stdout, "encoding", None) or "utf-8").name
    return json.dumps(value, ensure_ascii=encoding != "utf-8")


def echo_json(value: object) -> None:
    """Write a value as JSON to stdout."""
    echo(as_json_text(value))


def say(text: str) -> None:
    """Write a line to stderr."""
    print(text, file=sys.stderr, flush=True)


def console() -> Console:
    """Give a place for tables on stdout, of one width where that is no terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 110)


def import_from_here(names: Iterable[str]) -> None:
    """Let an import path among the names be one of the current folder, as `python -m` does."""
    if any(":" in name and "=" not in name for name in names) and sys.path[0] != str(Path.cwd()):
        sys.path.insert(0, str(Path.cwd()))


def check_file(out: Path) -> None:
    """Refuse a place where no file can be written, before any work."""
    from handful.errors import unexpected
    from handful.files import check_writable

    try:
        check_writable(out.parent)
        reason = "that is a folder" if out.is_dir() else ""
    except OSError as error:
        reason = str(error.strerror or error)
    if reason:
        raise unexpected("--out", str(out), f"a file that can be written ({reason})")


def find_class(name: str) -> type[FewShotClassifier]:
    """Find the class of a method by its name or import path."""
    from handful.methods import find_method

    import_from_here([name])
    return find_method(name)


def read_specs(methods: list[str] | None) -> list[str]:
    """Read methods that are given one at a time, or as `one,two`."""
    every = [spec.split(",") if ":" not in spec else [spec] for spec in methods or []]
    specs = [one for some in every for one in some if one]
    import_from_here(specs)
    return specs


def read_images(data: Path, on_error: str = "raise") -> ImageSet:
    """Read labelled images from a folder or a table, each file opened to look; say what was found."""
    return _report(data, _listed(data, on_error, verify=True))


def use_images(data: Path, on_error: str, use: Callable[[ImageSet], T]) -> tuple[T, ImageSet]:
    """Use labelled images, and let the use find those that can't be read: each file is read once.

    Gives what the use gives, and the images that it used; says what was found.
    """
    from handful.data import use_readable

    found, images = use_readable(_listed(data, on_error), use, on_error)  # type: ignore[arg-type]
    return found, _report(data, images.with_same())


def _listed(data: Path, on_error: str, verify: bool = False) -> ImageSet:
    from handful.data import ImageSet
    from handful.data.tables import is_table
    from handful.errors import unexpected

    if on_error not in ("raise", "skip"):
        raise unexpected("on_error", on_error, "'raise' or 'skip'")
    read = ImageSet.from_table if is_table(data) else ImageSet.from_folder
    return read(data, on_error="skip" if on_error == "skip" else "raise", verify=verify)


def _report(data: Path, images: ImageSet) -> ImageSet:
    count = len(images.class_names)
    say(f"{data}: {count} class{'es' * (count != 1)}, {images.report}")
    return images


def list_files(paths: Iterable[Path]) -> list[Path]:
    """List files, and the images in folders; say what is passed over there."""
    from handful.data.folders import list_images

    files, passed = list_images(paths)
    for line in str(passed).splitlines():
        say(line)
    return files


def load_classifier(
    model: Path, method: str | None, backbone: str | None, weights: Path | None
) -> FewShotClassifier:
    """Load a saved classifier; its class and its backbone may be given."""
    from handful import load

    cls = None if method is None else find_class(method)
    return load(model, backbone, cls, weights=weights)


def plain(value: object) -> str:
    """Write a value for people: what is inside of it one after the other, numbers of four digits."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {plain(inside)}" for name, inside in value.items()) or "nothing"
    return f"{value:.4g}" if isinstance(value, float) else str(value)

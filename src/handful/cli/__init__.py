"""The command line: one file for each kind of command.

`learn` (demo, fit, meta-train, compare), `predict`, `evaluate`, `use` (explain, info), `share` (push, pull,
export), `study` (bench, report, analyze) and `serve`. Results go to stdout, everything else to stderr. Exit
codes: 0 done, 1 it failed, 2 the call was wrong, 130 interrupted. Nothing heavy is imported before a command
runs.
"""

from __future__ import annotations

import os
import sys
import warnings

import typer

from handful.cli import evaluate, learn, predict, serve, share, study, use
from handful.cli.common import escape_what_has_no_code, say

app = typer.Typer(
    name="handful",
    help="Teach a CLIP model your classes from a handful of images.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    learn.demo,
    learn.fit,
    learn.meta_train,
    learn.compare,
    predict.predict,
    evaluate.evaluate,
    use.explain,
    use.info,
    share.push,
    share.pull,
    share.export,
    study.bench,
    study.report,
    serve.serve,
):
    app.command()(command)
app.add_typer(study.analyze, name="analyze")


def main() -> None:
    """Run the command line, and turn errors into one line and an exit code."""
    from handful.errors import HandfulError

    escape_what_has_no_code()
    warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
    try:
        app(prog_name="handful")
    except HandfulError as error:
        say(f"error: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # the disk is full, or can't be written at all
        say(f"error: {error}")
        sys.exit(1)

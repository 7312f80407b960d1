"""Which commands are there, and how does every one of them end? Exit 0: answered; 1: could not answer; 2: bad usage.

An error of ours is one sentence on stderr. Anything else is a bug or the user's own code: one sentence too, and
`--debug` shows the traceback.
"""

from __future__ import annotations

import os
import sys

import typer

from batchscope.cli import listing, report, study
from batchscope.errors import BatchscopeError

app = typer.Typer(
    name="batchscope",
    help="What batch size does to your own training run, measured with error bars.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("study")(study.command)
app.command("report")(report.command)
app.command("list")(listing.list_studies)
app.command("show")(listing.show)
app.command("export")(listing.export)


def run(arguments: list[str] | None = None) -> None:
    """Run one command line and exit with its code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # package.module:function is looked for where the user stands
    try:
        code = app(args=arguments, standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except BatchscopeError as error:
        if debug:
            raise
        _end(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _end("stopped; everything measured so far is stored, run the same command to go on", 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # a usage error of the parser
            _end(str(error.format_message()), int(error.exit_code))
        if debug:
            raise
        _end(f"unexpected {type(error).__name__}: {error} (run again with --debug to see where)".replace("\n", " "), 1)


def _end(sentence: str, code: int) -> None:
    """Say one sentence and leave."""
    print(f"batchscope: {sentence}", file=sys.stderr, flush=True)
    sys.exit(code)

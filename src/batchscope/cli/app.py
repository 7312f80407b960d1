"""Which commands are there, and how does every one of them end? Exit 0: answered; 1: could not answer; 2: bad usage.

An error of ours is one sentence on stderr. Anything else is a bug or the user's own code: one sentence too, and
`--debug` shows the traceback.
"""

from __future__ import annotations

import functools
import io
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import typer

from batchscope.cli import export, listing, match, noise, profile, recommend, report, scale, sharpness, show, study
from batchscope.errors import BatchscopeError

INTERRUPTED = 130  # what the parser returns where Ctrl-C meets it: 128 + SIGINT, the shells' convention
STOPPED = "stopped; everything measured so far is stored, run the same command to go on"


class _Stopped(Exception):
    """Ctrl-C inside a command. Not a KeyboardInterrupt: the parser has its own end for that, without a sentence."""


class _NobodyReads(Exception):
    """Standard output was closed inside a command. Not an OSError, for the same reason."""


def _guarded(command: Callable[..., None]) -> Callable[..., None]:
    """The command, with its two ends that the parser must not see."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
            sys.stdout.flush()
        except KeyboardInterrupt as error:
            raise _Stopped from error
        except BrokenPipeError as error:
            raise _NobodyReads from error

    return run


app = typer.Typer(
    name="batchscope",
    help="What batch size does to your own training run, measured with error bars.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("study")(_guarded(study.command))
app.command("profile")(_guarded(profile.command))
app.command("noise")(_guarded(noise.command))
app.command("recommend")(_guarded(recommend.command))
app.command("scale")(_guarded(scale.command))
app.command("sharpness")(_guarded(sharpness.command))
app.command("match")(_guarded(match.command))
app.command("report")(_guarded(report.command))
app.command("list")(_guarded(listing.list_studies))
app.command("show")(_guarded(show.command))
app.command("export")(_guarded(export.command))


def run(arguments: list[str] | None = None) -> NoReturn:
    """Run one command line and exit with its code."""
    arguments = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    debug = "--debug" in arguments
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # package.module:function is looked for where the user stands
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no reason to fail
    try:
        code = app(args=arguments, prog_name="batchscope", standalone_mode=False)
    except BatchscopeError as error:
        _end(str(error), error.exit_code, debug)
    except (_Stopped, KeyboardInterrupt, typer.Abort):
        _end(STOPPED, 1, debug)
    except _NobodyReads:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        say = getattr(error, "format_message", None)
        if say is not None:  # the parser's: the command line is malformed
            _end(f"{say().rstrip('.')}: see batchscope --help", getattr(error, "exit_code", 2), debug)
        _end(f"unexpected {type(error).__name__}: {error} (run again with --debug to see where)", 1, debug)
    if code == INTERRUPTED:
        _end(STOPPED, 1, debug)
    sys.exit(code if isinstance(code, int) else 0)


def _end(sentence: str, code: int, debug: bool) -> NoReturn:
    """Say one sentence and leave; with `debug`, the traceback of what is being handled before it."""
    if debug:
        traceback.print_exc()
    print(f"batchscope: {' '.join(sentence.splitlines())}", file=sys.stderr, flush=True)
    sys.exit(code)

"""`batchscope report STUDY`: one self-contained HTML page, from the store alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from batchscope.cli import options


def command(
    study: Annotated[
        str,
        typer.Argument(
            help="Id of a study, profile, noise run, advice, scaling, sharpness or match, or its beginning: see list."
        ),
    ],
    store: options.Store = "batchscope.db",
    report: Annotated[
        str | None, typer.Option(metavar="PATH", help="Where to write it [default: beside the store].")
    ] = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Draw the page of whatever has an id in the store again: runs nothing, without torch."""
    from batchscope.verbs.report import write_report

    path = write_report(study, store=store, path=Path(report) if report else None)
    options.print_json({"report": str(path)}) if as_json else print(path)

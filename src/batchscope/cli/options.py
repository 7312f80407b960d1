"""Options that every command shares, with one wording."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from batchscope.errors import UsageError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; progress goes to stderr.")]
Store = Annotated[str, typer.Option("--store", metavar="PATH", help="The SQLite file that keeps what was measured.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def batch_sizes(text: str | None) -> list[int] | None:
    """`32,256` as numbers; UsageError for anything else."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.replace(" ", "").split(",")]
    except ValueError:
        raise UsageError(
            f"expected --batch-sizes as whole numbers with commas, got {text!r}: write --batch-sizes 32,256"
        ) from None


def print_json(value: Any) -> None:
    """One JSON object on stdout."""
    json.dump(value, sys.stdout, allow_nan=False, indent=2)
    sys.stdout.write("\n")

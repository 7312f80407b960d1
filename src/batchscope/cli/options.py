"""Options that every command shares, with one wording."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Generator
from typing import Annotated, Any

import typer

from batchscope.errors import UsageError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; progress goes to stderr.")]
Store = Annotated[str, typer.Option("--store", metavar="PATH", help="The SQLite file that keeps what was measured.")]
Devices = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Devices that train together [default: 1, or as many as a launcher started processes]."
    ),
]
On = Annotated[
    str | None,
    typer.Option(
        metavar="ray[://HOST:PORT]",
        help="Run trials on a Ray cluster: RAY_ADDRESS's or this machine's own, or a client server's.",
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def batch_sizes(text: str | None, option: str = "--batch-sizes", example: str = "32,256") -> list[int] | None:
    """`32,256` as numbers; UsageError for anything else."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.replace(" ", "").split(",")]
    except ValueError:
        raise UsageError(
            f"expected {option} as whole numbers with commas, got {text!r}: write {option} {example}"
        ) from None


UNITS = {"": 1, "b": 1} | {
    f"{prefix}{suffix}": base ** (power + 1)
    for power, prefix in enumerate("kmgt")
    for suffix, base in (("b", 1000), ("ib", 1024), ("", 1024))
}


def size_in_bytes(text: str | None) -> int | None:
    """`2GiB`, `500 MB`, `1.5G` or `1073741824` as bytes; UsageError for anything else. G is GiB, GB is 10^9."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if found is None or found[2] not in UNITS:
        raise UsageError(f"expected --memory-limit as a number of bytes, got {text!r}: write --memory-limit 2GiB")
    return int(float(found[1]) * UNITS[found[2]])


@contextlib.contextmanager
def chatter_on_stderr() -> Generator[None]:
    """Inside, what is printed on stdout goes to stderr, by the user's task or by a program that it starts."""
    sys.stdout.flush()
    answers = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(answers, 1)
        os.close(answers)


def print_json(value: Any) -> None:
    """One JSON object on stdout."""
    json.dump(value, sys.stdout, allow_nan=False, indent=2)
    sys.stdout.write("\n")

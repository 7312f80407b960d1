"""`batchscope scale TASK`: what do more devices buy, measured and predicted?"""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from batchscope.cli import launcher, options
from batchscope.errors import UsageError

SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
BYTES = {"B/s": 1.0, "kB/s": 1e3, "MB/s": 1e6, "GB/s": 1e9, "TB/s": 1e12, "Mbit/s": 1.25e5, "Gbit/s": 1.25e8}


def command(
    task: Annotated[str, typer.Argument(help="path.py, path.py:function, package.module:function or a built-in name.")],
    devices: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="Device counts; what is not here is predicted [default: 1,2,4, ...]."),
    ] = None,
    batch_sizes: Annotated[
        str | None,
        typer.Option(metavar="B,B,...", help="Global batch sizes [default: those of the store's newest study]."),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(metavar="LATENCY,BANDWIDTH", help="Predict for a link such as 5us,25GB/s, not the one here."),
    ] = None,
    largest: Annotated[int, typer.Option(metavar="N", help="Predict up to so many devices.")] = 1024,
    seed: Annotated[int, typer.Option(help="Of the question, so that it can be asked again.")] = 0,
    again: Annotated[bool, typer.Option("--again", help="Measure anew what the store knows already.")] = False,
    store: options.Store = "batchscope.db",
    report: Annotated[
        str | None, typer.Option(metavar="PATH", help="Where to write the HTML page [default: beside the store].")
    ] = None,
    no_report: Annotated[bool, typer.Option("--no-report", help="Write no HTML page.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would run and what it would cost.")] = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Measure what more devices buy, predict those that are not here, and find where more buy nothing."""
    launcher.alone("scale", "starts the processes of several devices itself")
    from rich.console import Console

    from batchscope.analysis.scaling_answer import scaling_to_json
    from batchscope.cli.progress import Progress
    from batchscope.report.scaling_terminal import print_scaling
    from batchscope.verbs.scale import price_scaling, scale

    asked: dict[str, Any] = {
        "devices": options.batch_sizes(devices, "--devices", "1,2,4"),
        "batch_sizes": options.batch_sizes(batch_sizes),
        "network": link(network),
        "largest": largest,
        "seed": seed,
    }
    if dry_run:
        with options.chatter_on_stderr():
            plan = price_scaling(task, **asked, store=store)
        options.print_json(plan) if as_json else print("\n".join(plan["sentences"]))
        return
    with options.chatter_on_stderr(), Progress(Console(stderr=True)) as progress:
        result = scale(task, **asked, store=store, again=again, report=report, draw=not no_report, listen=progress)
    options.print_json(scaling_to_json(result)) if as_json else print_scaling(result, Console())


def link(text: str | None) -> tuple[float, float] | None:
    """(seconds, bytes per second) of `5us,25GB/s`."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*([\d.e+-]+)\s*(\S+?)\s*,\s*([\d.e+-]+)\s*(\S+)\s*", text)
    try:
        if found is None:
            raise KeyError(text)
        return float(found[1]) * SECONDS[found[2]], float(found[3]) * BYTES[found[4]]
    except (KeyError, ValueError):
        units = ", ".join(SECONDS), ", ".join(BYTES)
        raise UsageError(
            f"expected --network as a latency ({units[0]}) and a bandwidth ({units[1]}), got {text!r}: write "
            "--network 5us,25GB/s"
        ) from None

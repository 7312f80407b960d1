"""`batchscope profile TASK`: what do steps cost on this device?"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from batchscope.cli import launcher, options


def command(
    task: Annotated[str, typer.Argument(help="path.py, path.py:function, package.module:function or a built-in name.")],
    batch_sizes: Annotated[
        str | None,
        typer.Option(metavar="B,B,...", help="Micro-batch sizes to time [default: powers of two up to what fits]."),
    ] = None,
    memory_limit: Annotated[
        str | None,
        typer.Option(metavar="BYTES", help="2GiB, 500MiB or bytes [default: what the device has, less a margin]."),
    ] = None,
    devices: Annotated[int, typer.Option(help="1: a profile is of one device; scale times several.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the order of examples.")] = 0,
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
    """Measure seconds per step and memory against batch size: the largest that fits, the knee, the best splits."""
    launcher.alone("profile")
    from rich.console import Console

    from batchscope.analysis.profile import profile_to_json
    from batchscope.cli.progress import Progress
    from batchscope.report.profile_terminal import print_profile
    from batchscope.verbs.price import price_profile
    from batchscope.verbs.profile import profile

    asked: dict[str, Any] = {
        "batch_sizes": options.batch_sizes(batch_sizes),
        "memory_limit": options.size_in_bytes(memory_limit),
        "devices": devices,
        "seed": seed,
    }
    if dry_run:
        with options.chatter_on_stderr():
            plan = price_profile(task, **asked)
        options.print_json(plan) if as_json else print("\n".join(plan["sentences"]))
        return
    with options.chatter_on_stderr(), Progress(Console(stderr=True)) as progress:
        result = profile(task, **asked, store=store, again=again, report=report, draw=not no_report, listen=progress)
    options.print_json(profile_to_json(result)) if as_json else print_profile(result, Console())

"""`batchscope noise TASK`: how noisy are the gradients along a run, and which batch size does that predict?"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from batchscope.cli import launcher, options


def command(
    task: Annotated[str, typer.Argument(help="path.py, path.py:function, package.module:function or a built-in name.")],
    budget: Annotated[
        float | None, typer.Option(metavar="R", help="Most to spend, in reference runs [default: what it takes].")
    ] = None,
    checkpoints: Annotated[
        int, typer.Option(help="Points of the run at which batches are compared with the full gradient.")
    ] = 3,
    devices: Annotated[int, typer.Option(metavar="N", help="1: gradient noise is measured on one device.")] = 1,
    seed: Annotated[int, typer.Option(help="Which block of seeds.")] = 0,
    again: Annotated[bool, typer.Option("--again", help="Measure anew what the store knows already.")] = False,
    on: options.On = None,
    store: options.Store = "batchscope.db",
    report: Annotated[
        str | None, typer.Option(metavar="PATH", help="Where to write the HTML page [default: beside the store].")
    ] = None,
    no_report: Annotated[bool, typer.Option("--no-report", help="Write no HTML page.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would run and what it would cost.")] = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Follow the task's reference run and measure its gradient noise scale, with an interval."""
    launcher.alone("noise")
    from rich.console import Console

    from batchscope.analysis.noise import noise_to_json
    from batchscope.cli.progress import Progress
    from batchscope.report.noise_terminal import print_noise
    from batchscope.verbs.noise import noise, price_noise

    asked: dict[str, Any] = {"seed": seed, "budget": budget, "checkpoints": checkpoints, "devices": devices}
    if dry_run:
        with options.chatter_on_stderr():
            plan = price_noise(task, **asked, store=store)
        options.print_json(plan) if as_json else print("\n".join(plan["sentences"]))
        return
    with options.chatter_on_stderr(), Progress(Console(stderr=True)) as progress:
        kept = {"store": store, "again": again, "report": report, "draw": not no_report}
        result = noise(task, **asked, on=on, **kept, listen=progress)
    options.print_json(noise_to_json(result)) if as_json else print_noise(result, Console())

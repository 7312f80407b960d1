"""`batchscope recommend TASK`: which batch size, learning rate and accumulation; how sure; what binds?"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from batchscope.cli import launcher, options


def command(
    task: Annotated[str, typer.Argument(help="path.py, path.py:function, package.module:function or a built-in name.")],
    budget: Annotated[
        float,
        typer.Option(metavar="R", help="Most to spend on training, in reference runs; never passed."),
    ] = 10.0,
    objective: Annotated[str, typer.Option(help="What to make least: time, cost, examples or energy.")] = "time",
    price: Annotated[
        float | None, typer.Option(metavar="P", help="Price of a device for an hour [default: costs in device hours].")
    ] = None,
    memory_limit: Annotated[
        str | None, typer.Option(metavar="BYTES", help="Such as 2GiB [default: what the device has, less a margin].")
    ] = None,
    devices: Annotated[int, typer.Option(metavar="N", help="Train on at most so many devices of this machine.")] = 1,
    best_in: Annotated[
        float | None,
        typer.Option("--best-in", metavar="SECONDS", help="Instead of a goal: the lowest loss in this time."),
    ] = None,
    best_in_examples: Annotated[
        int | None, typer.Option(metavar="N", help="Instead of a goal: the lowest loss in N examples.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Which block of seeds.")] = 0,
    again: Annotated[bool, typer.Option("--again", help="Decide anew; stored trials are still used.")] = False,
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
    """Decide on batch size, learning rate and accumulation, with an interval and the limit that binds."""
    launcher.alone("recommend")
    from rich.console import Console

    from batchscope.analysis.advice import advice_to_json
    from batchscope.cli.progress import Progress
    from batchscope.report.advice_terminal import print_advice
    from batchscope.verbs.recommend import price_advice, recommend

    asked: dict[str, Any] = {
        "budget": budget,
        "objective": objective,
        "price": price,
        "memory_limit": options.size_in_bytes(memory_limit),
        "devices": devices,
        "best_in_seconds": best_in,
        "best_in_examples": best_in_examples,
        "seed": seed,
    }
    if dry_run:
        with options.chatter_on_stderr():
            plan = price_advice(task, **asked, store=store)
        options.print_json(plan) if as_json else print("\n".join(plan["sentences"]))
        return
    with options.chatter_on_stderr(), Progress(Console(stderr=True)) as progress:
        kept = {"store": store, "again": again, "report": report, "draw": not no_report}
        result = recommend(task, **asked, on=on, **kept, listen=progress)
    options.print_json(advice_to_json(result)) if as_json else print_advice(result, Console())

"""`batchscope study TASK`: what does batch size do to this training?"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from batchscope.cli import launcher, options


def command(
    task: Annotated[str, typer.Argument(help="path.py, path.py:function, package.module:function or a built-in name.")],
    batch_sizes: Annotated[
        str | None,
        typer.Option(metavar="B,B,...", help="Global batch sizes in examples [default: up to eight, from 8 up]."),
    ] = None,
    policy: Annotated[
        str, typer.Option(help="held: the task's own learning rate; tuned: searched at every size; both.")
    ] = "both",
    seeds: Annotated[int, typer.Option(help="Reported seeds of every batch size and policy.")] = 3,
    patience: Annotated[
        float, typer.Option(help="Epochs without a lower validation loss that count as converged.")
    ] = 5.0,
    seed: Annotated[int, typer.Option(help="Which block of seeds.")] = 0,
    budget: Annotated[float | None, typer.Option(metavar="R", help="Spend at most R reference runs.")] = None,
    devices: options.Devices = None,
    on: options.On = None,
    store: options.Store = "batchscope.db",
    report: Annotated[
        str | None, typer.Option(metavar="PATH", help="Where to write the HTML page [default: beside the store].")
    ] = None,
    no_report: Annotated[bool, typer.Option("--no-report", help="Write no HTML page.")] = False,
    keep_weights: Annotated[
        bool, typer.Option("--keep-weights", help="Keep the weights of reported trials, for `batchscope sharpness`.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would run and what it would cost.")] = False,
    checkpoint_seconds: Annotated[float, typer.Option(help="How often a running trial is saved.")] = 10.0,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Measure what batch size does to a training run: curves, table, claims tested, report."""
    devices = launcher.joined(devices)
    from rich.console import Console

    from batchscope.analysis.table import to_json
    from batchscope.cli.progress import Progress
    from batchscope.report.terminal import print_study
    from batchscope.verbs.price import price
    from batchscope.verbs.study import study

    asked: dict[str, Any] = {
        "batch_sizes": options.batch_sizes(batch_sizes),
        "policy": policy,
        "seeds": seeds,
        "patience": patience,
        "seed": seed,
        "budget": budget,
        "devices": devices,
        "keep_weights": keep_weights,
    }
    if dry_run:
        with options.chatter_on_stderr():
            plan = price(task, store=store, **asked)
        options.print_json(plan) if as_json else print("\n".join(plan["sentences"]))
        return
    with options.chatter_on_stderr(), Progress(Console(stderr=True)) as progress:
        result = study(
            task,
            **asked,
            on=on,
            store=store,
            report=report,
            draw=not no_report,
            checkpoint_seconds=checkpoint_seconds,
            listen=progress,
        )
    if as_json:
        options.print_json(to_json(result))
    else:
        print_study(result, Console())

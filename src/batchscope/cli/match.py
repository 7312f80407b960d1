"""`batchscope match TASK`: the largest batch that still trains as well as the small one, and by which remedy."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from batchscope.cli import launcher, options
from batchscope.errors import UsageError


def command(
    task: Annotated[str, typer.Argument(metavar="TASK", help="path.py, path.py:function, package:function, a name.")],
    batch_size: Annotated[
        str | None,
        typer.Option(metavar="B[,B...]", help="The large batch [default: 16 times the task's own, as data admit]."),
    ] = None,
    speedup: Annotated[
        float | None, typer.Option(metavar="K", help="Instead: K times the task's own batch size.")
    ] = None,
    remedies: Annotated[
        str | None,
        typer.Option(
            metavar="NAME;NAME...", help='As "linear scaling + ghost batch norm; LARS" [default: all at equal cost].'
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Fresh seeds that confirm, paired with the baseline's.")] = 5,
    confirm: Annotated[
        str,
        typer.Option(
            metavar="N|all",
            help="Remedies that are confirmed, the plain large batch besides, and such as make more steps.",
        ),
    ] = "4",
    no_ladder: Annotated[bool, typer.Option("--no-ladder", help="No batch sizes but those asked for.")] = False,
    epochs: Annotated[float | None, typer.Option(help="Of every run [default: the task's budget].")] = None,
    devices: Annotated[
        str, typer.Option(metavar="N,N,...", help="Device counts that seconds are wanted for; after a scale run.")
    ] = "1",
    seed: Annotated[int, typer.Option(help="Which block of seeds.")] = 0,
    budget: Annotated[float | None, typer.Option(metavar="R", help="The most to spend, in reference runs.")] = None,
    store: options.Store = "batchscope.db",
    report: Annotated[
        str | None, typer.Option(metavar="PATH", help="Where to write the HTML page [default: beside the store].")
    ] = None,
    no_report: Annotated[bool, typer.Option("--no-report", help="Write no HTML page.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be run, and what it costs.")] = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Find the remedy that lets a large batch train as well as the task's own batch size, at equal examples."""
    launcher.alone("match", "trains one trial on one device")
    from rich.console import Console

    from batchscope.analysis.matching import match_to_json
    from batchscope.cli.progress import Progress
    from batchscope.report.match_terminal import print_match
    from batchscope.verbs.match import match
    from batchscope.verbs.match_price import price_match

    asked: dict[str, Any] = {
        "batch_size": options.batch_sizes(batch_size, "--batch-size", "512"),
        "speedup": speedup,
        "remedies": None if remedies is None else [name.strip() for name in remedies.split(";") if name.strip()],
        "seeds": seeds,
        "confirm": _most(confirm),
        "ladder": not no_ladder,
        "epochs": epochs,
        "devices": options.batch_sizes(devices, "--devices", "1,8"),
        "seed": seed,
        "budget": budget,
    }
    if dry_run:
        with options.chatter_on_stderr():
            plan = price_match(task, **asked, store=store)
        options.print_json(plan) if as_json else print("\n".join(plan["sentences"]))
        return
    with options.chatter_on_stderr(), Progress(Console(stderr=True)) as progress:
        result = match(task, **asked, store=store, report=report, draw=not no_report, listen=progress)
    options.print_json(match_to_json(result)) if as_json else print_match(result, Console())


def _most(text: str) -> int | None:
    if text == "all":
        return None
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"expected --confirm as a number or all, got {text!r}: write --confirm 4") from None

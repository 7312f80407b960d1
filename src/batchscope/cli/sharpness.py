"""`batchscope sharpness STUDY`: how flat, and how far from the start, are the minima of a study's trials?"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from batchscope.cli import launcher, options
from batchscope.errors import UsageError


def command(
    of: Annotated[
        list[str],
        typer.Argument(metavar="STUDY|FILE...", help="A study's id, run with --keep-weights; or checkpoint files."),
    ],
    task: Annotated[
        str | None, typer.Option(metavar="TASK", help="The task of the checkpoints; a study's is known.")
    ] = None,
    initial: Annotated[
        str | None, typer.Option(metavar="FILE", help="The weights that the checkpoints' training began with.")
    ] = None,
    at: Annotated[
        str, typer.Option(help="best: at the lowest validation loss; last: where the trials ended.")
    ] = "best",
    batch_sizes: Annotated[str | None, typer.Option(metavar="B,B,...", help="Of the study's; [default: all]")] = None,
    policy: Annotated[str, typer.Option(help="held, tuned or both.")] = "both",
    seeds: Annotated[int | None, typer.Option(help="The first so many seeds [default: all].")] = None,
    examples: Annotated[
        str, typer.Option(metavar="N|all", help="Training examples that the loss is the mean over.")
    ] = "8192",
    epsilons: Annotated[str, typer.Option(metavar="E,E,...", help="Half-widths of Keskar's box.")] = "1e-3,5e-4",
    double: Annotated[bool, typer.Option("--double", help="Compute in float64 throughout.")] = False,
    no_pictures: Annotated[bool, typer.Option("--no-pictures", help="No lines, slices and spectra.")] = False,
    causes: Annotated[
        bool, typer.Option("--causes", help="Also train on from small-batch weights with large batches, and so on.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of what the estimators draw.")] = 0,
    again: Annotated[bool, typer.Option("--again", help="Measure anew what the store knows already.")] = False,
    store: options.Store = "batchscope.db",
    report: Annotated[
        str | None, typer.Option(metavar="PATH", help="Where to write the HTML page [default: beside the store].")
    ] = None,
    no_report: Annotated[bool, typer.Option("--no-report", help="Write no HTML page.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be measured, and how long.")] = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Measure how flat the loss is where trials ended, and how far that is from where they began."""
    launcher.alone("sharpness", "measures one set of weights on one device")
    from rich.console import Console

    from batchscope.analysis.flatness import flatness_to_json
    from batchscope.cli.progress import Progress
    from batchscope.report.flatness_terminal import print_flatness
    from batchscope.verbs.sharpness import sharpness
    from batchscope.verbs.sharpness_price import price_sharpness

    asked: dict[str, Any] = {
        "task": task,
        "initial": initial,
        "at": at,
        "batch_sizes": options.batch_sizes(batch_sizes),
        "policy": policy,
        "seeds": seeds,
        "examples": _examples(examples),
        "epsilons": _widths(epsilons),
        "double": double,
        "pictures": not no_pictures,
        "causes": causes,
        "seed": seed,
    }
    which = of[0] if len(of) == 1 else of
    if dry_run:
        with options.chatter_on_stderr():
            plan = price_sharpness(which, **asked, store=store)
        options.print_json(plan) if as_json else print("\n".join(plan["sentences"]))
        return
    with options.chatter_on_stderr(), Progress(Console(stderr=True)) as progress:
        result = sharpness(which, **asked, again=again, store=store, report=report, draw=not no_report, listen=progress)
    options.print_json(flatness_to_json(result)) if as_json else print_flatness(result, Console())


def _examples(text: str) -> int | None:
    if text == "all":
        return None
    try:
        return int(text.replace(",", ""))
    except ValueError:
        raise UsageError(f"expected --examples as a number or all, got {text!r}: write --examples 8192") from None


def _widths(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"expected --epsilons as numbers with commas, got {text!r}: write --epsilons 1e-3,5e-4"
        ) from None

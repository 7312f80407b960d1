"""`batchscope list`, `show` and `export`: what the store holds."""

from __future__ import annotations

import csv
import sys
from typing import Annotated

import typer

from batchscope.cli import options

COLUMNS = (
    "role",
    "batch_size",
    "learning_rate",
    "seed",
    "outcome",
    "ended_by",
    "step",
    "examples",
    "part",
    "metric",
    "value",
)


def list_studies(
    store: options.Store = "batchscope.db", as_json: options.Json = False, debug: options.Debug = False
) -> None:
    """The studies of a store, oldest first."""
    import dataclasses

    from batchscope.store.sqlite import open_store

    with open_store(store, read_only=True) as opened:
        found = opened.studies()
    if as_json:
        options.print_json({"studies": [dataclasses.asdict(s) for s in found]})
        return
    for s in found:
        state = "finished" if s.finished_at else "unfinished"
        print(f"{s.id[:12]}  {s.task}  {s.finished_trials} of {s.trials} trials  {state}  {s.created_at}")
    if not found:
        print("no studies yet")


def show(
    study: Annotated[str, typer.Argument(help="A study's id, or the beginning of one.")],
    store: options.Store = "batchscope.db",
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """A stored study's answer, without running anything."""
    from rich.console import Console

    from batchscope.analysis.table import analyse, to_json
    from batchscope.report.terminal import print_study
    from batchscope.store.sqlite import open_store

    with open_store(store, read_only=True) as opened:
        result = analyse(opened.study_data(opened.resolve(study)))
    if as_json:
        options.print_json(to_json(result))
    else:
        print_study(result, Console())


def export(
    study: Annotated[str, typer.Argument(help="A study's id, or the beginning of one.")],
    store: options.Store = "batchscope.db",
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Every evaluation of every trial: as CSV (one value a line), or with --json as records."""
    from batchscope.records import json_safe, to_plain
    from batchscope.store.sqlite import open_store

    with open_store(store, read_only=True) as opened:
        data = opened.study_data(opened.resolve(study))
    if as_json:
        options.print_json(json_safe(to_plain(data)))
        return
    lines = csv.writer(sys.stdout)
    lines.writerow(COLUMNS)
    for role in ("reference", "held", "tuning", "tuned"):
        for trial in getattr(data, role):
            arm, result = trial.spec.arm, trial.result
            head = (role, arm.batch_size, arm.learning_rate, trial.spec.seed, result.outcome, result.ended_by)
            for e in result.trace:
                values = [("train", k, v) for k, v in e.train.items()] + [
                    ("validation", k, v) for k, v in e.validation.items()
                ]
                values += [("weights", "distance", e.distance), ("weights", "update_norm", e.update_norm)]
                lines.writerows((*head, e.step, e.examples, *value) for value in values)

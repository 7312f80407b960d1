"""`batchscope export ID`: what was measured under this id, a number a line or as the whole record."""

from __future__ import annotations

import csv
import dataclasses
import sys
from collections.abc import Iterator

from batchscope.cli import options
from batchscope.cli.show import Id, read
from batchscope.records import (
    AdviceData,
    GradientNorms,
    MatchData,
    MatchResult,
    MatchRow,
    Measured,
    NoiseRun,
    PointSharpness,
    ProfileData,
    ScalingData,
    SharpnessData,
    StudyData,
    Tried,
    json_safe,
    to_plain,
)

EVALUATION_COLUMNS = (
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
WINDOW_COLUMNS = ("kind", "batch_size", "micro_batch_size", "phase", "round", "seconds")
SCALING_COLUMNS = ("devices", "batch_size", "bytes", "phase", "round", "seconds")
SHARPNESS_COLUMNS = (
    "kind",
    "label",
    "batch_size",
    "policy",
    "learning_rate",
    "seed",
    "measure",
    "part",
    "place",
    "value",
    "low",
    "high",
)
MATCH_COLUMNS = (
    "kind",
    "role",
    "batch_size",
    "remedy",
    "learning_rate",
    "seed",
    "outcome",
    "ended_by",
    "examples",
    "part",
    "metric",
    "value",
    "low",
    "high",
)
MEASUREMENT_COLUMNS = tuple(f.name for f in dataclasses.fields(GradientNorms))
TRIED_COLUMNS = tuple(f.name for f in dataclasses.fields(Tried))


def command(
    stored: Id,
    store: options.Store = "batchscope.db",
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Every evaluation of a study, timing window of a profile or a scaling, measured step of a noise run, trial of an
    advice, measure of a sharpness or run and row of a match: as CSV, or with --json all as records."""
    data = read(store, stored)
    if as_json:
        options.print_json(json_safe(to_plain(data)))
        return
    lines = csv.writer(sys.stdout)
    if isinstance(data, ProfileData):
        lines.writerow(WINDOW_COLUMNS)
        lines.writerows(_windows(data))
    elif isinstance(data, NoiseRun):
        lines.writerow(MEASUREMENT_COLUMNS)
        lines.writerows([getattr(one, name) for name in MEASUREMENT_COLUMNS] for one in data.measurements)
    elif isinstance(data, AdviceData):
        lines.writerow(TRIED_COLUMNS)
        lines.writerows([getattr(one, name) for name in TRIED_COLUMNS] for one in data.trials)
    elif isinstance(data, ScalingData):
        lines.writerow(SCALING_COLUMNS)
        lines.writerows(_windows_on_devices(data))
    elif isinstance(data, SharpnessData):
        lines.writerow(SHARPNESS_COLUMNS)
        lines.writerows(_sharpness(data))
    elif isinstance(data, MatchData):
        lines.writerow(MATCH_COLUMNS)
        lines.writerows(_match(data))
    else:
        lines.writerow(EVALUATION_COLUMNS)
        lines.writerows(_evaluations(data))


def _evaluations(data: StudyData) -> Iterator[tuple[object, ...]]:
    """One value a line."""
    for role in ("reference", "held", "tuning", "tuned"):
        for trial in getattr(data, role):
            arm, result = trial.spec.arm, trial.result
            head = (role, arm.batch_size, arm.learning_rate, trial.spec.seed, result.outcome, result.ended_by)
            for e in result.trace:
                values = [("train", k, v) for k, v in e.train.items()] + [
                    ("validation", k, v) for k, v in e.validation.items()
                ]
                values += [("weights", "distance", e.distance), ("weights", "update_norm", e.update_norm)]
                yield from ((*head, e.step, e.examples, *value) for value in values)


def _windows(data: ProfileData) -> Iterator[tuple[object, ...]]:
    """One window a line: seconds per step of this part of it, in this round (from 0).

    The phase "whole" is the step itself; "reference" is a step of the reference size, timed just before it; the others
    are those of `records.StepTiming`. The kind "step" runs the batch in one pass, "split" in micro-batches.
    """
    for timing in data.timing.timings if data.timing else ():
        phases = {"whole": timing.seconds_per_step, "reference": timing.reference, **timing.phases}
        yield from _rounds(("step", timing.batch_size, timing.batch_size), phases)
    for split in data.splits:
        phases = {"whole": split.seconds_per_step, "reference": split.reference}
        yield from _rounds(("split", split.batch_size, split.micro_batch_size), phases)


def _windows_on_devices(data: ScalingData) -> Iterator[tuple[object, ...]]:
    """One window a line: seconds per step on so many devices, in this round (from 0).

    The phase "whole" is the step itself, "alone" the same without averaging the gradients; "reference" is a step of the
    task's own batch size on one device, timed just before. The seconds of phase "all-reduce" are those of one
    all-reduce of so many bytes, which has no batch size.
    """
    for one in data.timing.passes:
        for timing in one.timings:
            phases = {"whole": timing.seconds_per_step, "reference": timing.reference, **timing.phases}
            yield from _rounds((one.conditions.world_size, timing.batch_size, None), phases)
    for bare in data.timing.all_reduces:
        yield from _rounds((bare.devices, None, bare.bytes), {"all-reduce": bare.seconds})


def _rounds(head: tuple[object, ...], phases: dict[str, tuple[float, ...]]) -> Iterator[tuple[object, ...]]:
    for phase, seconds in phases.items():
        yield from ((*head, phase, number, one) for number, one in enumerate(seconds))


# --- a sharpness ---

ONE_NUMBER = ("loss", "gradient_norm", "adaptive_sharpness", "distance", "initial_norm", "step", "examples")
WITH_INTERVAL = (
    "largest_eigenvalue",
    "smallest_eigenvalue",
    "trace",
    "trace_again",
    "adaptive_eigenvalue",
    "batch_sharpness",
)


def _sharpness(data: SharpnessData) -> Iterator[tuple[object, ...]]:
    """One value a line, with its interval where it has one: of every point, then of causal runs' ends, then of lines.

    The kind is "point", that of the causal run, or that of the line ("straight", "curved", "slice"). The part is that
    of the data which a metric is over, the space of a box, or the parameter tensor of a distance. The place is the
    epsilon of a box, or where on a line. The loss without a part is f. Grids and spectra are in the record: --json.
    """
    for point in data.points:
        yield from _at_point("point", point, {})
    for run in data.continued:
        more = {name: getattr(run, name) for name in ("reached_loss", "from_batch_size", "from_epochs", "share")}
        trained = dataclasses.replace(run.point, batch_size=run.batch_size, seed=run.seed)
        yield from _at_point(run.kind, trained, more)
    for line in data.lines:
        head = (line.kind, " to ".join(line.labels), None, None, None, None)
        for part, curves in (("train", line.train), ("validation", line.validation)):
            for metric, values in curves.items():
                pairs = zip(line.places, values, strict=True)
                yield from ((*head, metric, part, place, value, None, None) for place, value in pairs)


def _at_point(kind: str, point: PointSharpness, more: dict[str, float]) -> Iterator[tuple[object, ...]]:
    """What is known at one set of weights; what was not measured has no line."""
    head = (kind, point.label, point.batch_size, point.policy, point.learning_rate, point.seed)
    numbers = {name: getattr(point, name) for name in ONE_NUMBER} | more
    rows = [(name, None, None, value, None, None) for name, value in numbers.items()]
    parts = {"train": point.metrics, "validation": point.validation, "test": point.test or {}}
    rows += [(k, part, None, v, None, None) for part, metrics in parts.items() for k, v in metrics.items()]
    for name in WITH_INTERVAL:
        found: Measured | None = getattr(point, name)
        if found is not None:
            rows.append((name, None, None, found.estimate, found.low, found.high))
    boxes = [("box", box) for box in point.boxes] + [("subset_box", box) for box in point.subset_boxes]
    for which, box in boxes:
        counts = {"percent": box.percent, "examples": box.examples, "iterations": box.iterations}
        rows += [(f"{which}_{name}", box.space, box.epsilon, value, None, None) for name, value in counts.items()]
    for layer in point.layers:
        norms = {"distance": layer.distance, "initial_norm": layer.initial_norm, "norm": layer.norm}
        rows += [(name, layer.name, None, value, None, None) for name, value in norms.items()]
    yield from ((*head, *row) for row in rows if row[3:] != (None, None, None))


# --- a match ---


def _match(data: MatchData) -> Iterator[tuple[object, ...]]:
    """One value a line: of every run, then of every step that was timed, then of the rows that follow from them.

    The kind is "evaluation" (validation loss after so many examples), "run" (what is known of it as a whole: metrics at
    its lowest validation loss, steps and examples to the goal), "window" (seconds per step of a remedy in one round,
    the phase as the metric) or "row" (a figure over the seeds that confirm, with its interval; its verdict as outcome).
    A match that ended before its baseline was run has no rows.
    """
    for run in data.runs:
        head = (run.role, run.batch_size, run.remedy, run.learning_rate, run.seed, run.outcome, run.ended_by)
        for examples, loss in run.losses:
            yield ("evaluation", *head, examples, "validation", "loss", loss, None, None)
        at_lowest = {"validation": run.validation, "test": run.test or {}}
        known = [(run.lowest_at, part, name, v) for part, metrics in at_lowest.items() for name, v in metrics.items()]
        counts = {"steps": run.steps, "steps_to_goal": run.steps_to_goal, "examples_to_goal": run.examples_to_goal}
        known += [(run.examples, "training", name, v) for name, v in counts.items() if v is not None]
        yield from (("run", *head, *one, None, None) for one in known)
    for timed in data.timings:
        for timing in timed.timing.timings:
            phases = {"whole": timing.seconds_per_step, "reference": timing.reference, **timing.phases}
            head = ("window", "timing", timing.batch_size, timed.remedy, None, None, None, None, None, "seconds")
            yield from ((*head, phase, one, None, None) for phase, seconds in phases.items() for one in seconds)
    if any(run.role == "baseline" for run in data.runs):
        from batchscope.analysis.matching import analyse_match

        yield from _rows_of_match(analyse_match(data))


def _rows_of_match(result: MatchResult) -> Iterator[tuple[object, ...]]:
    """The baseline's, the untuned large batches' and every remedy's figures."""
    for row in (result.baseline, *result.untuned, *result.rows):
        head = ("row", row.role, row.batch_size, row.remedy, row.learning_rate, None, row.verdict, None, row.examples)
        for part, name, m in _figures_of(row):
            yield (*head, part, name, m.estimate, m.low, m.high)
        numbers = {"bound": row.bound, "room": row.room, "seeds": row.seeds, "reached": row.reached}
        numbers |= {"diverged": row.diverged, "seeds_wanted": row.seeds_wanted}
        yield from ((*head, None, name, v, None, None) for name, v in numbers.items() if v is not None)


def _figures_of(row: MatchRow) -> Iterator[tuple[str, str, Measured]]:
    """(part, metric, value) of everything in a row that has an interval."""
    yield "validation", "lowest_loss", row.min_validation_loss
    yield "validation", "excess", row.excess
    for part, metrics in (("validation", row.validation), ("test", row.test or {})):
        yield from ((part, name, m) for name, m in metrics.items())
    single = {"steps_to_goal": row.steps_to_goal, "examples_to_goal": row.examples_to_goal}
    single |= {"seconds_per_step": row.seconds_per_step}
    yield from (("training", name, m) for name, m in single.items() if m is not None)
    yield from (("training", f"seconds_to_goal_on_{n}", m) for n, m in row.seconds_to_goal.items())

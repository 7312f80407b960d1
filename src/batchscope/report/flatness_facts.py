"""How was flatness measured, in words? Data, chunks, precision, estimators, cost and methods, for both reports."""

from __future__ import annotations

from collections.abc import Iterable

from batchscope.records import Measured, SharpnessData, SharpnessResult
from batchscope.report.noise_facts import methods_among
from batchscope.report.noise_words import known
from batchscope.report.profile_facts import conditions_of, engine_of, versions_of
from batchscope.report.words import count, list_of, number, plain, seconds

AT = {"best": "the lowest validation loss", "last": "the end of training"}
FEW = 8  # names that a fact gives one by one


def facts_of(result: SharpnessResult) -> list[tuple[str, str]]:
    """Every fact with its name, in reading order."""
    data, c = result.data, result.data.conditions
    facts = [
        ("Weights", weights_of(data)),
        ("Function", function_of(data)),
        ("Mode", mode_of(data)),
        ("Precision", precision_of(data)),
        ("Reproducible", reproducible_of(data)),
        ("Estimators", estimators_of(data)),
        ("Conditions", conditions_of(c)),
        ("Engine", engine_of(c.engine)),
        ("Versions", versions_of(c)),
        ("Spent", f"{seconds(data.seconds)} in all (a clock reading, not a timing)"),
    ]
    return [*facts, *([("Measured at", f"{plain(data.measured_at[:19])} (UTC)")] if data.measured_at else [])]


def weights_of(data: SharpnessData) -> str:
    """Whose weights were measured, and when in training they were taken."""
    n = len(data.points)
    said = f"{count(n)} set{'' if n == 1 else 's'} of {count(data.parameters)} trainable parameters"
    if data.study_id is None:
        return f"{said}, from files"
    at = AT.get(data.question.at, plain(data.question.at))
    return f"{said}, of study {plain(data.study_id)}'s trials, as they were at {at}"


def function_of(data: SharpnessData) -> str:
    """What f is."""
    return (
        f"the mean training loss over {count(data.examples)} examples, the same for all weights, in chunks of "
        f"{count(data.chunk)} in a fixed order"
    )


def mode_of(data: SharpnessData) -> str:
    """Eval mode, dropout off; batch norm by the chunk."""
    said = "eval mode, dropout off, no augmentation"
    if not data.normed:
        return f"{said}; no batch norm"
    names = [plain(n) for n in data.normed]
    told = list_of(names if len(names) <= FEW else [*names[:FEW], f"{count(len(names) - FEW)} more"])
    return (
        f"{said}, but batch norm takes the statistics of each chunk ({told}), so that the function and its derivatives "
        "are one: the chunks are a part of f"
    )


def precision_of(data: SharpnessData) -> str:
    """In which precision f was computed and summed."""
    return "float64 throughout" if data.double else "computed in the model's own precision, summed in float64"


def reproducible_of(data: SharpnessData) -> str:
    """What the probe of f found to differ between equal passes, or to be drawn at random."""
    notes = dict.fromkeys(n for n in (*data.notes, *(n for p in data.points for n in p.notes)) if is_of_probe(n))
    return "; ".join(map(plain, notes)) or "equal passes over the first chunks gave the same bits"


def is_of_probe(note: str) -> bool:
    """Whether a note is one of `measure.repeatable`."""
    return "not repeatable" in note or "draws random numbers" in note


def estimators_of(data: SharpnessData) -> str:
    """The settings of the estimators, as they were."""
    parts = [f"{plain(name).replace('_', ' ')} {number(value)}" for name, value in data.settings.items()]
    return "; ".join([*parts, f"seed {data.question.seed}"])


def notes_of(result: SharpnessResult) -> list[str]:
    """The notes of the answer, of what was measured and of each set of weights, each once."""
    return list(dict.fromkeys([*result.notes, *result.data.notes]))


def methods_of(result: SharpnessResult) -> dict[str, list[str]]:
    """How each quantity's intervals were made: method -> the quantities that used it."""
    quantities: dict[str, Iterable[Measured]] = {
        plain(measure): [r.measures[measure] for r in result.rows if measure in r.measures]
        for measure in measures_in(result)
    }
    quantities |= {
        "claims": [c.effect.ratio for c in result.claims],
        "distance at equal epochs, steps and loss": [d.distance for d in result.distances],
        "growth of the distance": [g.slope for g in result.growth],
        "causal runs": [m for r in result.causes for m in r.measures.values()],
        "causal runs against uninterrupted ones": [m for r in result.causes for m in r.ratios.values()],
    }
    return methods_among({name: [m for m in values if known(m)] for name, values in quantities.items()})


def measures_in(result: SharpnessResult) -> list[str]:
    """Every measure that a row has, in reading order."""
    return list(dict.fromkeys(measure for r in result.rows for measure in r.measures))

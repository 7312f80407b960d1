"""What does one `sharpness` answer? Rows over seeds, claims 10 and 6, distances at equal terms, causal runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from batchscope.analysis.causes import cause_rows
from batchscope.analysis.flatness_claims import judge_flatness, policies_of, rates_at
from batchscope.analysis.flatness_measures import measures_of, over_seeds
from batchscope.analysis.growth import distance_rows, growth_of, left_out, traces_of
from batchscope.records import (
    FlatnessRow,
    Measured,
    PointSharpness,
    SharpnessData,
    SharpnessResult,
    StudyData,
    json_safe,
    to_plain,
)

NAMED = 3  # sets of weights that a note names one by one
PICTURES = ("lines", "slices")  # of the data: the page draws them, `--json` leaves them out


def analyse_sharpness(data: SharpnessData, study: StudyData | None) -> SharpnessResult:
    """The answer that the measured points give, joined with the traces of the study that they come from.

    Pure: equal data give an equal result. The sentences are put in by `report.flatness_words`.
    """
    traces = traces_of(study) if study is not None else ()
    return SharpnessResult(
        task=data.task,
        data=data,
        rows=(*_study_rows(data), *_file_rows(data)),
        claims=judge_flatness(data, study),
        distances=distance_rows(study) if study is not None else (),
        growth=growth_of(traces),
        sentences=(),
        notes=notes_of(data, study),
        traces=traces,
        causes=cause_rows(data),
    )


def _study_rows(data: SharpnessData) -> list[FlatnessRow]:
    """One row for each policy and batch size, over its seeds."""
    rows = []
    for policy in policies_of(data):
        points = [p for p in data.points if p.policy == policy and p.batch_size is not None]
        arms = {b: [p for p in points if p.batch_size == b] for b in sorted({p.batch_size or 0 for p in points})}
        known = {m.name: over_seeds(m, arms) for m in measures_of(points)}
        for b, arm in arms.items():
            values = {name: of[b] for name, of in known.items()}
            label = f"batch size {b}, {policy}" if policy else f"batch size {b}"
            rows.append(FlatnessRow(b, policy, label, rates_at(points, b), len(arm), values))
    return rows


def _file_rows(data: SharpnessData) -> list[FlatnessRow]:
    """One row for each set of weights that came as a file, with its estimators' intervals."""
    points = [p for p in data.points if p.batch_size is None]
    nothing = Measured(None, None, None, 0, 0, "none: not measured here")
    return [
        FlatnessRow(
            None, p.policy, p.label, p.learning_rate, 1, {m.name: m.of(p) or nothing for m in measures_of(points)}
        )
        for p in points
    ]


def notes_of(data: SharpnessData, study: StudyData | None) -> tuple[str, ...]:
    """What a reader has to know of how this was measured, the points' own notes included."""
    notes = [*data.notes, *_point_notes(data.points)]
    for policy in study.settings.policies if study is not None else ():
        if lost := left_out(study, policy) if study is not None else 0:
            notes.append(
                f"{lost} {policy} trial{'' if lost == 1 else 's'} diverged or never moved: distances at equal epochs, "
                "steps and training loss are without them."
            )
    return tuple(dict.fromkeys(notes))


def _point_notes(points: Sequence[PointSharpness]) -> list[str]:
    """Each note once, with the weights that have it where not all do."""
    notes = []
    for note in dict.fromkeys(n for p in points for n in p.notes):
        labels = [p.label for p in points if note in p.notes]
        more = f" and {len(labels) - NAMED} more" if len(labels) > NAMED else ""
        notes.append(note if len(labels) == len(points) > 1 else f"{'; '.join(labels[:NAMED])}{more}: {note}")
    return notes


def flatness_to_json(result: SharpnessResult) -> dict[str, Any]:
    """The answer as plain JSON data; pictures, spectra and traces are `export`'s."""
    plain = to_plain(result)
    data = plain.pop("data")
    del plain["traces"]
    for name in PICTURES:
        del data[name]
    for point in (*data["points"], *(run["point"] for run in data["continued"])):
        del point["density"]
    kept = {k: v for k, v in data.items() if k not in ("task", "notes", "seconds")}
    return json_safe(plain | kept | {"spent": {"seconds": data["seconds"]}})

"""What does one `scale` answer? Rows, fits, predictions, the best batch size by device count, and claims 8 and 9."""

from __future__ import annotations

from typing import Any

from batchscope.analysis.network import fit_network
from batchscope.analysis.scaling import Predictor, fit_scaling, predictions_of, rows_of
from batchscope.analysis.scaling_choice import choices_of, goal_steps, most_useful
from batchscope.analysis.scaling_claims import judge_scaling
from batchscope.records import ScalingData, ScalingResult, StudyData, json_safe, to_plain


def analyse_scaling(data: ScalingData, study: StudyData | None = None) -> ScalingResult:
    """The answer that the windows of one pass give, joined with a study's steps where there is one.

    The sentences are put in by `report.scaling_words`.
    """
    timing, question = data.timing, data.question
    counts = counts_of(data)
    steps = goal_steps(study) if study is not None else None
    predictor = Predictor(timing, question.network)
    choices = choices_of(predictor, steps, counts) if steps is not None else ()
    return ScalingResult(
        task=data.task,
        data=data,
        rows=rows_of(timing, data.train_size),
        network=fit_network(timing.all_reduces),
        fit=fit_scaling(timing),
        predictions=predictions_of(timing, counts, question.batch_sizes, question.network),
        choices=choices,
        most_useful=most_useful(choices),
        critical_batch_size=steps.critical_batch_size if steps is not None else None,
        claims=judge_scaling(data, study),
        sentences=(),
        notes=notes_of(data),
        goal=study.settings.goal if study is not None else None,
    )


def counts_of(data: ScalingData) -> tuple[int, ...]:
    """Device counts that are answered for: those measured, and powers of two up to the largest asked for."""
    powers = {2**k for k in range(data.question.largest.bit_length()) if 2**k <= data.question.largest}
    return tuple(sorted({*data.question.device_counts, *powers}))


def notes_of(data: ScalingData) -> tuple[str, ...]:
    """What a reader has to know of how this was measured."""
    notes = list(data.notes)
    drift = max(p.drift for p in data.timing.passes)
    if drift > 0.1:
        notes.append(f"The machine drifted by {drift:.0%} while it was timed; windows are corrected for it.")
    return tuple(notes)


def scaling_to_json(result: ScalingResult) -> dict[str, Any]:
    """The answer as plain JSON data; the windows are `export`'s."""
    plain = to_plain(result)
    data = plain.pop("data")
    kept = (
        "fingerprint",
        "train_size",
        "own_batch_size",
        "question",
        "conditions",
        "study_id",
        "coupled",
        "measured_at",
    )
    spent = {name: data[name] for name in ("examples", "steps", "seconds")}
    sizes = {"gradient_bytes": data["timing"]["gradient_bytes"], "buckets": data["timing"]["buckets"]}
    return json_safe(plain | {name: data[name] for name in kept} | sizes | {"spent": spent})

"""Is the answer of `sharpness` what its points and traces say, on worlds whose truth is known?"""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from batchscope.analysis import flatness_measures as name
from batchscope.analysis.contrasts import BAND
from batchscope.analysis.flatness import analyse_sharpness, flatness_to_json
from batchscope.analysis.flatness_claims import AT_WEIGHTS, CLAIMS
from batchscope.analysis.growth import distance_rows, equals_of, growth_of, line_fit, moving_trials, traces_of
from batchscope.analysis.target import Value
from batchscope.analysis.uncertainty import pooled
from batchscope.records import (
    Claim,
    DistanceTrace,
    Evaluation,
    PointSharpness,
    SharpnessData,
    SharpnessResult,
    StudyData,
    from_plain,
    to_plain,
)

from .builders import TRAIN_SIZE, synthetic_study
from .flatness_worlds import OWN_RATE, eigenvalue, made_up_files, made_up_sharpness, tuned_rate

SIZES = (8, 16, 32, 64)
BOX = "sharpness (box, full space, eps 0.001)"
STUDY = synthetic_study(n_batch=4)
WHOLE = analyse_sharpness(made_up_sharpness(), STUDY)


def changed(data: SharpnessData, size: int, **fields: object) -> SharpnessData:
    """The data with every point of a batch size changed."""
    points = tuple(dataclasses.replace(p, **fields) if p.batch_size == size else p for p in data.points)
    return dataclasses.replace(data, points=points)


def claim_of(result: SharpnessResult, what: str, policy: str = "held") -> Claim:
    (claim,) = [c for c in result.claims if (c.effect.what, c.policy) == (what, policy)]
    return claim


# --- rows ---


def test_rows_pool_the_seeds_of_a_policy_on_logs() -> None:
    rows = {(r.policy, r.batch_size): r for r in WHOLE.rows}
    assert list(rows) == [(p, b) for p in ("held", "tuned") for b in SIZES]
    points = [p for p in WHOLE.data.points if p.policy == "held"]
    values = {b: [Value(p.boxes[0].percent) for p in points if p.batch_size == b] for b in SIZES}
    for b, expected in pooled(values, log=True).items():
        assert rows["held", b].measures[BOX] == expected
        assert rows["held", b].seeds == 3
        assert rows["held", b].learning_rate == OWN_RATE
    smallest = rows["held", 8].measures[name.SMALLEST]
    assert smallest.interval.startswith("t, pooled")
    assert smallest.estimate == pytest.approx(np.mean([p.smallest_eigenvalue.estimate for p in points[:3]]))


def test_the_largest_eigenvalue_is_told_in_units_of_the_learning_rate() -> None:
    for r in WHOLE.rows:
        both = r.measures[name.LARGEST].estimate, r.measures[name.LARGEST_RATE].estimate
        assert both[1] == pytest.approx(both[0] * r.learning_rate)
    edge = [r.measures[name.LARGEST_RATE].estimate for r in WHOLE.rows if r.policy == "tuned"]
    assert edge == pytest.approx([1.6] * 4, rel=0.2)


def test_every_measure_of_the_points_has_its_row() -> None:
    measures = list(WHOLE.rows[0].measures)
    assert [m for m in measures if m.startswith("sharpness (")] == [
        f"sharpness (box, {space}, eps {eps})" for space in ("full space", "random subspace") for eps in (0.001, 0.0005)
    ]
    tests = {"training accuracy", "validation loss", "validation accuracy", "test loss", "test accuracy"}
    assert {name.TRACE, name.ADAPTIVE, name.BATCH, name.BATCH_RATE, name.DISTANCE, name.RELATIVE} <= set(measures)
    assert tests <= set(measures)
    assert all(m.interval for r in WHOLE.rows for m in r.measures.values())


def test_one_seed_keeps_the_estimators_interval_and_says_so() -> None:
    result = analyse_sharpness(made_up_sharpness(seeds=1), None)
    row, point = result.rows[0], result.data.points[0]
    trace = row.measures[name.TRACE]
    assert (trace.low, trace.high) == (point.trace.low, point.trace.high)
    assert trace.interval.endswith("; one seed, whose spread is not in it")
    assert row.measures[BOX].interval == "none: one seed per batch size has no spread"
    assert {c.verdict for c in result.claims} == {"not resolved"}
    assert all("one seed per batch size" in c.why for c in result.claims)


def test_files_have_a_row_each_and_no_claims() -> None:
    result = analyse_sharpness(made_up_files(), None)
    assert [(r.label, r.batch_size, r.seeds) for r in result.rows] == [("small.pt", None, 1), ("large.pt", None, 1)]
    assert result.rows[0].measures[name.LARGEST] == result.data.points[0].largest_eigenvalue
    assert name.DISTANCE not in result.rows[0].measures
    assert result.claims == ()
    assert result.notes == ("the learning rate is not known",)


def test_a_value_that_is_not_positive_is_pooled_on_the_raw_scale() -> None:
    data = made_up_sharpness()
    (first, *rest) = data.points
    flat = tuple(dataclasses.replace(b, percent=0.0) for b in first.boxes)
    result = analyse_sharpness(dataclasses.replace(data, points=(dataclasses.replace(first, boxes=flat), *rest)), None)
    m = result.rows[0].measures[BOX]
    assert m.interval.startswith("t, pooled")
    assert m.estimate == pytest.approx(sum(p.boxes[0].percent for p in data.points[1:3]) / 3)
    claim = claim_of(result, BOX)
    assert "1 of 12 values are not positive, have no logarithm and are left out" in claim.why
    assert claim.verdict == "holds"


# --- claims ---


def test_claim_10_is_judged_by_every_measure_of_flatness_held_and_tuned() -> None:
    tens = [c for c in WHOLE.claims if c.number == 10]
    assert {c.claim for c in tens} == {CLAIMS[10]}
    assert len(tens) == 2 * 8
    assert name.BATCH not in {c.effect.what for c in tens}
    assert {c.effect.ratio.interval.split("Holm over ")[1] for c in WHOLE.claims} == {f"{2 * (8 + 4)} claims"}


def test_the_ratio_is_that_of_the_paired_logs() -> None:
    claim = claim_of(WHOLE, name.LARGEST)
    points = {(p.batch_size, p.seed): p.largest_eigenvalue.estimate for p in WHOLE.data.points if p.policy == "held"}
    true = math.exp(np.mean([math.log(points[64, s] / points[8, s]) for s in range(3)]))
    assert claim.effect.ratio.estimate == pytest.approx(true)
    assert claim.effect.ratio.low < eigenvalue(64, OWN_RATE, "held") / eigenvalue(8, OWN_RATE, "held")
    assert claim.verdict == "holds"
    assert claim.effect.monotone is True
    assert claim.why.startswith("It was ")
    assert "at the same learning rate 0.05" in claim.why
    assert "the training loss there was" in claim.why


def test_at_the_edge_of_stability_the_eigenvalue_follows_the_rate() -> None:
    claim = claim_of(WHOLE, name.LARGEST, "tuned")
    assert claim.verdict == "does not hold"
    assert claim.effect.ratio.estimate == pytest.approx(tuned_rate(8) / tuned_rate(64), rel=0.1)
    assert "the edge of stability is 2" in claim.why


def test_equal_minima_do_not_hold() -> None:
    data = made_up_sharpness(sigma=1e-3)
    same = {b: next(p for p in data.points if p.batch_size == 8).boxes for b in SIZES}
    for b, boxes in same.items():
        data = changed(data, b, boxes=boxes)
    assert claim_of(analyse_sharpness(data, None), BOX).verdict == "does not hold"


def test_a_measure_that_failed_at_one_end_says_why() -> None:
    result = analyse_sharpness(changed(made_up_sharpness(), 64, trace=None), None)
    claim = claim_of(result, name.TRACE)
    assert claim.verdict == "not resolved"
    assert claim.why == "It could not be judged: no seed gave a positive value at batch size 64."
    assert claim.effect.ratio.estimate is None


def test_one_batch_size_has_nothing_to_compare() -> None:
    result = analyse_sharpness(made_up_sharpness((8,), drawn=False), None)
    assert {c.verdict for c in result.claims} == {"not resolved"}
    assert all("only batch size 8 was measured" in c.why for c in result.claims)


def test_claim_6_is_judged_at_the_weights_and_at_equal_terms() -> None:
    sixes = [c.effect.what for c in WHOLE.claims if (c.number, c.policy) == (6, "held")]
    assert sixes == [AT_WEIGHTS, *(f"distance at equal {e}" for e in ("epochs", "steps", "training loss"))]
    epochs, steps = (claim_of(WHOLE, f"distance at equal {e}") for e in ("epochs", "steps"))
    assert epochs.verdict == "holds"  # the made-up study's distance is c log(1 + step): more steps, farther
    assert steps.verdict == "does not hold"
    assert steps.effect.ratio.estimate == pytest.approx(1.0, abs=0.02)
    assert "which all of these trials reach" in epochs.why


# --- distances ---


def distance(step: float) -> float:
    """What the made-up study's held trials have."""
    return 3 * math.sqrt(OWN_RATE) * math.log1p(step)


def test_distances_at_equal_epochs_steps_and_loss() -> None:
    found = {e.equal: e for e in equals_of(STUDY, "held")}
    trials = moving_trials(STUDY, "held")
    last = {(t.spec.arm.batch_size, t.spec.seed): t.result.trace[-1] for t in trials}
    assert found["epochs"].at == min(e.examples for e in last.values()) / TRAIN_SIZE
    assert found["steps"].at == min(e.step for e in last.values())
    for (b, _), d in found["epochs"].distances.items():
        assert d == pytest.approx(distance(found["epochs"].at * TRAIN_SIZE / b), rel=0.01)
    for d in found["steps"].distances.values():
        assert d == pytest.approx(distance(found["steps"].at), rel=0.01)
    lowest = {k: min(e.train["loss"] for e in t.result.trace) for k, t in zip(last, trials, strict=True)}
    assert found["training loss"].at == max(lowest.values())
    assert set(found["training loss"].distances) == set(last)
    worst = max(lowest, key=lambda k: lowest[k])
    trace = next(t for t in trials if (t.spec.arm.batch_size, t.spec.seed) == worst).result.trace
    there = next(e for e in trace if e.train["loss"] == lowest[worst])
    assert found["training loss"].distances[worst] == pytest.approx(there.distance)


def test_a_diverged_trial_is_left_out_and_counted() -> None:
    diverged = [t for t in STUDY.held if t.result.outcome == "diverged"]
    assert len(moving_trials(STUDY, "held")) == len(STUDY.held) - len(diverged) == 11
    assert any(note.startswith("1 held trial diverged or never moved") for note in WHOLE.notes)


def with_trace(study: StudyData, trace: tuple[Evaluation, ...]) -> StudyData:
    """A study whose held trials all have one trace."""
    held = tuple(dataclasses.replace(t, result=dataclasses.replace(t.result, trace=trace)) for t in study.held)
    return dataclasses.replace(study, held=held)


def test_a_loss_is_reached_between_two_evaluations() -> None:
    """One trial stops at loss 1.0; the others pass it half way between distances 2 and 4, steps 10 and 40."""
    study = synthetic_study(n_batch=2, seeds=1, with_censored=False, policies=("held",))
    losses = [(0, 3.0, 0.0), (10, 1.5, 2.0), (40, 0.5, 4.0)]
    trace = tuple(Evaluation(s, 8 * s, {"loss": f}, {"loss": f}, d, 0.0) for s, f, d in losses)
    whole = with_trace(study, trace)
    short = dataclasses.replace(trace[2], train={"loss": 1.0})
    first, second = whole.held
    stopped = dataclasses.replace(first, result=dataclasses.replace(first.result, trace=(*trace[:2], short)))
    found = {e.equal: e for e in equals_of(dataclasses.replace(whole, held=(stopped, second)), "held")}
    assert found["training loss"].at == 1.0
    assert list(found["training loss"].distances.values()) == pytest.approx([4.0, 3.0])
    assert list(found["training loss"].steps.values()) == pytest.approx([40.0, 20.0])


def test_trials_without_common_ground_have_no_comparison() -> None:
    study = synthetic_study(n_batch=2, seeds=2, with_censored=False)
    start = Evaluation(0, 0, {"loss": 1.0}, {"loss": 1.0}, 0.0, 0.0)
    assert equals_of(with_trace(study, (start,)), "held") == []
    rising = (start, *(Evaluation(k, 8 * k, {"loss": 1.0 + k}, {"loss": 1.0}, float(k), 0.0) for k in (1, 2, 3)))
    assert [e.equal for e in equals_of(with_trace(study, rising), "held")] == ["epochs", "steps"]


def test_rows_of_distances_are_pooled_on_logs() -> None:
    rows = distance_rows(STUDY)
    assert len(rows) == 2 * 3 * 4
    held = {r.batch_size: r.distance for r in rows if (r.policy, r.equal) == ("held", "epochs")}
    assert all(m.interval.startswith("t on logs, pooled over 4 batch sizes") for m in held.values())
    assert held[8].estimate > held[64].estimate


# --- growth ---


def trace(steps: list[int], distances: list[float]) -> DistanceTrace:
    return DistanceTrace(8, "held", 0, 0.1, tuple(steps), tuple(distances))


def test_growth_finds_the_line_and_the_power() -> None:
    steps = [1, 3, 10, 30, 100, 300]
    (line,) = growth_of([trace(steps, [2 + 0.7 * math.log(s) for s in steps])])
    assert line.slope.estimate == pytest.approx(0.7)
    assert line.explained == pytest.approx(1.0)
    assert line.explained_by_power < 0.99
    (power,) = growth_of([trace(steps, [2 * s**0.4 for s in steps])])
    assert power.exponent == pytest.approx(0.4)
    assert power.explained_by_power == pytest.approx(1.0)
    assert power.explained < 0.95
    assert line.slope.interval == "none: one seed per batch size has no spread"


def test_growth_needs_three_evaluations_that_differ() -> None:
    assert growth_of([trace([1, 2], [1.0, 2.0]), trace([1, 2, 3], [1.0, 1.0, 1.0])]) == ()
    assert line_fit(np.array([1.0, 1.0]), np.array([0.0, 1.0])) is None


def test_the_study_grows_like_log_steps() -> None:
    growth = growth_of(traces_of(STUDY))
    assert [(g.policy, g.batch_size) for g in growth] == [(p, b) for p in ("held", "tuned") for b in SIZES]
    for g in growth:
        if g.policy == "held":
            assert g.slope.estimate == pytest.approx(3 * math.sqrt(OWN_RATE), rel=0.05)
            assert g.explained > 0.999


# --- records ---


def test_the_answer_is_pure_and_survives_plain_data() -> None:
    again = analyse_sharpness(made_up_sharpness(), STUDY)
    assert again == WHOLE
    assert from_plain(SharpnessResult, to_plain(WHOLE)) == WHOLE


def test_json_is_finite_and_leaves_pictures_to_the_export() -> None:
    data = changed(made_up_sharpness(causes=True), 8, adaptive_sharpness=math.nan, loss=math.inf)
    plain = flatness_to_json(analyse_sharpness(data, STUDY))
    text = json.dumps(plain, allow_nan=False)
    assert "density" not in text
    assert not {"lines", "slices", "traces", "data"} & set(plain)
    assert len(plain["points"]) == len(data.points)
    assert plain["points"][0]["loss"] is None
    assert plain["points"][0]["boxes"][0]["percent"] > 0
    assert plain["claims"][0]["number"] == 10
    assert plain["rows"][0]["measures"][BOX]["estimate"] > 0
    assert BAND > 0


def test_times_scales_the_interval_and_needs_a_rate() -> None:
    m = made_up_sharpness(seeds=1).points[0].trace
    assert name.times(m, 0.5).high == pytest.approx(0.5 * m.high)
    assert name.times(m, None) is None
    assert name.times(None, 0.5) is None
    assert name.exact(math.nan) is None
    assert name.measures_of([PointSharpness("nothing", loss=1.0)])[-1].name == name.TRAIN_LOSS

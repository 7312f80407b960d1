"""What is the study's answer, in numbers: rows, law, claims, cost?

`analyse` reads the records of one study and returns the `StudyResult` that the terminal, the page and `--json` show. It
runs nothing and stores nothing, so the same store gives the same answer on any machine.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from batchscope.analysis import quantities as q
from batchscope.analysis.claims import judge
from batchscope.analysis.scaling_claims import judge_scaling
from batchscope.analysis.target import (
    Value,
    coarse_note,
    crossed,
    epochs_to_converge,
    examples_to_goal,
    steps_per_epoch,
    steps_to_goal,
)
from batchscope.analysis.tradeoff import fit_law, no_fit
from batchscope.analysis.uncertainty import of_timing, pooled, product
from batchscope.records import (
    Goal,
    LawFit,
    Measured,
    Row,
    Spent,
    StudyData,
    StudyResult,
    Target,
    TimingPass,
    TrialRecord,
    json_safe,
    to_plain,
)

Arms = Mapping[int, Sequence[TrialRecord]]  # batch size -> its trials, by seed


def analyse(data: StudyData) -> StudyResult:
    """Everything that a study's records say. Pure: equal data give an equal result."""
    rows = tuple(row for policy in data.settings.policies for row in rows_of(data, policy))
    return StudyResult(
        task=data.settings.task,
        fingerprint=data.settings.fingerprint,
        goal=data.settings.goal,
        rows=rows,
        claims=(*judge(data, rows), *(judge_scaling(data.scaling, data) if data.scaling is not None else ())),
        law=law_of(data),
        settings=data.settings,
        spent=spent_of(data),
        timing=data.timing,
        notes=(*data.notes, *notes_of(data, rows)),
        targets=tuple(target_of(data, value) for value in data.settings.targets),
    )


def target_of(data: StudyData, value: float) -> Target:
    """Steps and examples to a further value of the goal's metric, and the law fitted to them."""
    s = data.settings
    goal = Goal(s.goal.metric, **{"at_most" if s.goal.falls else "at_least": value})
    there = dataclasses.replace(data, settings=dataclasses.replace(s, goal=goal))
    return Target(goal, tuple(row for policy in s.policies for row in rows_of(there, policy)), law_of(there))


def arms_of(data: StudyData, policy: str) -> dict[int, list[TrialRecord]]:
    """A policy's trials by batch size, ascending, seeds in order; failed ones left out; empty lists kept."""
    arms: dict[int, list[TrialRecord]] = {b: [] for b in sorted(data.settings.batch_sizes)}
    for trial in q.measured_trials(data, policy):
        arms.setdefault(trial.spec.arm.batch_size, []).append(trial)
    return {b: sorted(arms[b], key=lambda t: t.spec.seed) for b in sorted(arms)}


def rows_of(data: StudyData, policy: str) -> list[Row]:
    """One row per batch size; spreads are pooled over the policy's batch sizes.

    Seeds that did not reach count as bounds at the budget, whatever ended them (see `target`); failed trials are no
    measurement, are not counted in `seeds`, and are named in the notes.
    """
    s, arms = data.settings, arms_of(data, policy)
    steps = _goal_steps(data, arms)
    examples = _pool(arms, lambda t: examples_to_goal(t.result, s.goal, s.budget_examples))
    epochs = _pool(arms, lambda t: epochs_to_converge(t.result, s.train_size, s.budget_examples))
    steps_measured = pooled(steps, log=True)
    lowest = _pool(arms, _known(q.min_validation_loss), log=_positive(arms, q.min_validation_loss))
    train = _pool(arms, _known(q.train_loss), log=_positive(arms, q.train_loss))
    gap = _pool(arms, _known(q.generalization_gap), log=False)
    distance = _pool(arms, _known(q.distance_from_init))
    errors = _pool(arms, _known(q.error_gap), log=False) if "accuracy" in s.metrics else None
    tests = _test_metrics(arms)
    rates = {c.batch_size: c.learning_rate for c in data.choices}
    rows = []
    for b, trials in arms.items():
        per_epoch = _seconds(data.timing, b, steps_per_epoch(s.train_size, b))
        per_step = _seconds(data.timing, b, 1.0)
        rows.append(
            Row(
                batch_size=b,
                devices=s.conditions.world_size,
                policy=policy,
                learning_rate=s.own_learning_rate if policy == "held" else rates.get(b),
                tuning_trials=sum(t.spec.arm.batch_size == b for t in data.tuning) if policy == "tuned" else 0,
                seeds=len(trials),
                reached=sum(crossed(t.result.trace, s.goal) for t in trials),
                diverged=sum(t.result.outcome == "diverged" for t in trials),
                epochs_to_converge=epochs[b],
                steps_to_goal=steps_measured[b],
                examples_to_goal=examples[b],
                seconds_per_epoch=per_epoch,
                seconds_to_converge=product(epochs[b], per_epoch),
                seconds_to_goal=product(steps_measured[b], per_step),
                min_validation_loss=lowest[b],
                train_loss=train[b],
                generalization_gap=gap[b],
                distance_from_init=distance[b],
                error_gap=None if errors is None else errors[b],
                test=None if tests is None else {name: m[b] for name, m in tests.items()},
            )
        )
    return rows


def law_of(data: StudyData) -> LawFit:
    """The law fitted to the tuned policy; at a held learning rate there is none to fit."""
    if "tuned" not in data.settings.policies:
        return no_fit("the law holds for the tuned policy only, and that was not run")
    steps = _goal_steps(data, arms_of(data, "tuned"))
    return fit_law({b: values for b, values in steps.items() if values}, data.settings.train_size)


def spent_of(data: StudyData) -> Spent:
    """All work, each trial once: reported, searching, abandoned and failed ones alike, and the reference run."""
    results = {t.spec: t.result for t in (*data.reference, *data.held, *data.tuned, *data.tuning)}.values()
    examples = sum(r.examples for r in results)
    return Spent(
        examples=examples,
        steps=sum(r.steps for r in results),
        seconds=sum(r.seconds for r in results),
        trials=len(results),
        reference_runs=examples / data.reference_examples if data.reference_examples > 0 else math.nan,
    )


def notes_of(data: StudyData, rows: Sequence[Row]) -> tuple[str, ...]:
    """What a reader must know before trusting the rows, one sentence each."""
    s, notes = data.settings, []
    for policy in s.policies:
        own = [r for r in rows if r.policy == policy]
        if own and not any(r.reached for r in own):
            notes.append(
                f"No batch size reaches the goal ({s.goal}) in {s.budget_examples} examples in the policy {policy}: "
                "its examples, steps and seconds to goal are bounds."
            )
        if empty := [str(r.batch_size) for r in own if not r.seeds]:
            notes.append(f"Not measured in the policy {policy}: batch size {', '.join(empty)}.")
    for t in (*data.held, *data.tuned, *data.tuning):
        if t.result.outcome == "failed":
            notes.append(
                f"The trial at batch size {t.spec.arm.batch_size}, learning rate {t.spec.arm.learning_rate:.3g}, "
                f"seed {t.spec.seed} failed: {t.result.reason.rstrip('.') or 'no reason was recorded'}."
            )
    for c in data.choices:
        rates = [rate for rate, _ in c.tried]
        if len(rates) > 1 and c.learning_rate in (min(rates), max(rates)):
            notes.append(
                f"At batch size {c.batch_size} the best learning rate, {c.learning_rate:.3g}, is on the edge of those "
                "tried, and the search had reached its limit or its budget: a better one may lie beyond."
            )
    if data.timing is None:
        notes.append("The timing pass was not run: no seconds are given.")
    elif data.timing.drift > q.DRIFT_LIMIT:
        notes.append(
            f"The reference step drifted by {100 * data.timing.drift:.0f} % during the timing pass: "
            "seconds are corrected by it, and their interval may be too narrow."
        )
    quickest = min((r.examples_to_goal.estimate for r in rows if r.examples_to_goal.estimate), default=None)
    return (*notes, *coarse_note(s.cadence_examples, quickest, "least examples"))


def to_json(result: StudyResult) -> dict[str, Any]:
    """The contract of `study --json`: numbers that JSON cannot hold (nan, inf) become null."""
    law = result.law
    critical = law.critical_batch_size.to_json() if _known_at_all(law.critical_batch_size) else None
    answer: dict[str, Any] = {
        "task": result.task,
        "fingerprint": result.fingerprint,
        "goal": to_plain(result.goal),
        "rows": [to_plain(row) for row in result.rows],
        "claims": [
            {k: to_plain(getattr(c, k)) for k in ("claim", "number", "policy", "verdict", "effect", "why")}
            for c in result.claims
        ],
        "critical_batch_size": critical,
        "critical_batch_size_reason": law.reason,
        "s_min": law.s_min.to_json() if _known_at_all(law.s_min) else None,
        "law": to_plain(law),
        "targets": to_plain(result.targets),
        "settings": to_plain(result.settings),
        "spent": to_plain(result.spent),
        "timing": to_plain(result.timing),
        "notes": list(result.notes),
        "report": result.report,
    }
    return json_safe(answer)


def _known_at_all(m: Measured) -> bool:
    return m.estimate is not None or m.low is not None or m.high is not None


def _goal_steps(data: StudyData, arms: Arms) -> dict[int, list[Value]]:
    s = data.settings
    return {
        b: [steps_to_goal(t.result, s.goal, s.budget_examples, s.train_size, b) for t in trials]
        for b, trials in arms.items()
    }


def _pool(arms: Arms, of: Callable[[TrialRecord], Value | None], log: bool = True) -> dict[int, Measured]:
    """`pooled` over the arms; a trial that has no value is left out of its arm."""
    values = {b: [of(t) for t in trials] for b, trials in arms.items()}
    return pooled({b: [v for v in vs if v is not None] for b, vs in values.items()}, log)


def _known(of: Callable[[TrialRecord], float | None]) -> Callable[[TrialRecord], Value | None]:
    def value(trial: TrialRecord) -> Value | None:
        found = of(trial)
        return None if found is None else Value(found)

    return value


def _positive(arms: Arms, of: Callable[[TrialRecord], float | None]) -> bool:
    """Whether a loss may be pooled on the log scale: a loss that reaches 0 or below may not."""
    found = [of(t) for trials in arms.values() for t in trials]
    return all(v > 0 for v in found if v is not None)


def _seconds(timing: TimingPass | None, batch_size: int, steps: float) -> Measured:
    if timing is not None:
        for t in timing.timings:
            if t.batch_size == batch_size:
                return of_timing(t, steps, q.typical_reference(timing))
    return Measured(None, None, None, 0, 0, "none: not timed")


def _test_metrics(arms: Arms) -> dict[str, dict[int, Measured]] | None:
    """Each test metric, on its raw scale, at the best-validation weights."""
    names = sorted({name for trials in arms.values() for t in trials for name in t.result.test or ()})
    if not names:
        return None

    def reader(name: str) -> Callable[[TrialRecord], float | None]:
        return lambda t: q.finite_or_none((t.result.test or {}).get(name, math.nan))

    return {name: _pool(arms, _known(reader(name)), log=False) for name in names}

"""Does the oracle's search find the fastest cell of a law that is known, and say truly what it did not find?"""

from __future__ import annotations

import dataclasses
import importlib
import math
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from batchscope.records import Arm, Conditions, Evaluation, Goal, StopRule, TrialRecord, TrialResult, TrialSpec

GOAL = Goal("loss", at_most=0.5)
SIZES = [2**k for k in range(2, 13)]
LEAST, CRITICAL, BUDGET = 3000.0, 100.0, 400_000
SECONDS = {b: 1e-4 + 2e-6 * b for b in SIZES}


@pytest.fixture(scope="module")
def oracle() -> Any:
    """The benchmark as a module."""
    folder = str(Path(__file__).parents[1] / "benchmarks")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("oracle_table")
    finally:
        sys.path.remove(folder)


def law(batch_size: int, exponent: float) -> float:
    """Expected examples to goal: least at 2^k = sqrt(B / (1 + B / B_crit)), twice as many a factor of four from it."""
    centre = 0.5 * math.log2(batch_size / (1 + batch_size / CRITICAL)) - 1.3
    if exponent > centre + 1.2:
        return math.inf
    return LEAST * (1 + batch_size / CRITICAL) * 2 ** ((exponent - centre) ** 2 / 4)


def empty(oracle: Any) -> Any:
    """A table without a cell."""
    return oracle.Oracle("toy", "f" * 16, Conditions(), GOAL, 4096, BUDGET, 1000, 32, 0.1)


def simulated(oracle: Any, table: Any, wanted: Any, seconds: dict[int, float]) -> Any:
    """What a trial that follows the law, with 5 % of noise, would have left in the table."""
    spec = oracle.spec_of(table, wanted, seconds)
    noise = random.Random(f"{wanted.batch_size} {wanted.exponent} {wanted.seed}").gauss(0, 0.05)
    examples = law(wanted.batch_size, wanted.exponent) * math.exp(noise)
    cap, b, loss = (
        spec.stop.cap_examples,
        wanted.batch_size,
        1 + abs(wanted.exponent - math.log2(wanted.batch_size) / 2),
    )
    if examples <= min(cap or BUDGET, BUDGET):
        run = oracle.Run(wanted.seed, examples, examples / b, None, "goal", cap, 0.4)
    elif math.isinf(examples):
        run = oracle.Run(wanted.seed, None, None, float(BUDGET), "divergence", cap, None)
    else:
        run = oracle.Run(wanted.seed, None, None, float(cap or BUDGET), "cap" if cap else "budget", cap, loss)
    return b, spec.arm.learning_rate, run


def searched(oracle: Any, table: Any, seconds: dict[int, float]) -> tuple[Any, int]:
    """The search to its end, and how many trials it took."""
    spent = 0
    while wanted := oracle.next_trials(table := table.without_early_caps(seconds), seconds):
        assert len(set(wanted)) == len(wanted)
        spent += len(wanted)
        table = table.with_runs([simulated(oracle, table, w, seconds) for w in wanted])
    return table, spent


def least_seconds(seconds: dict[int, float]) -> float:
    """The truth, by trying everything."""
    return min(law(b, k) / b * seconds[b] for b in SIZES for k in range(-12, 13))


def check_complete(oracle: Any, table: Any, seconds: dict[int, float]) -> None:
    """The best is the law's, every walk is bracketed, and what is near has ten fresh seeds that ran to their end."""
    best = table.best(seconds)
    found = table.seconds_of(best, seconds)
    assert law(best.batch_size, table.exponent(best)) / best.batch_size * seconds[best.batch_size] <= 1.03 * (
        least_seconds(seconds)
    )
    assert found.fresh
    assert found.n == 10
    assert found.value == pytest.approx(least_seconds(seconds), rel=0.06)
    for b in {c.batch_size for c in table.cells}:
        cells = table.at(b)
        top = min(cells, key=lambda k, cells=cells: cells[k].score())
        assert {top - 1, top + 1} <= set(cells)
        beside = [cells[top], cells[top - 1], cells[top + 1]] if not cells[top].score()[0] else [cells[top]]
        assert not any(cell.missing(oracle.SEEDS) for cell in beside)
    for cell in table.cells:
        if table.seconds_of(cell, seconds).value <= oracle.NEAR * found.value:
            assert not cell.missing(oracle.FRESH)
        for run in cell.runs:
            assert run.cap is None or run.seed in oracle.SEEDS
            assert (
                run.examples is not None or run.least * seconds[cell.batch_size] / cell.batch_size > 1.4 * found.value
            )


def test_the_search_finds_the_fastest_cell_and_then_asks_for_nothing(oracle: Any, tmp_path: Path) -> None:
    table, _ = searched(oracle, empty(oracle), SECONDS)
    check_complete(oracle, table, SECONDS)
    assert {b for b in oracle.BATCH_SIZES if b <= 4096} <= {c.batch_size for c in table.cells}
    oracle.write(table, SECONDS, tmp_path)
    again = oracle.read("toy", tmp_path)
    assert again == table
    assert searched(oracle, again, SECONDS) == (table, 0)


def test_other_step_times_cost_only_what_they_leave_open(oracle: Any) -> None:
    """Small batches eight times dearer or cheaper: the truth moves, and what settled it before still counts."""
    table, whole = searched(oracle, empty(oracle), SECONDS)
    for factor, largest in ((1 / 8, 32), (8.0, 64)):
        seconds = {b: s * (factor if b <= largest else 1) for b, s in SECONDS.items()}
        moved, spent = searched(oracle, table, seconds)
        check_complete(oracle, moved, seconds)
        assert moved.best(seconds).batch_size != table.best(SECONDS).batch_size
        assert spent < whole


def test_a_part_of_the_table_leads_to_the_same_answer(oracle: Any) -> None:
    """A search that lost runs, of whatever kind, runs them again."""
    table, _ = searched(oracle, empty(oracle), SECONDS)
    draw = random.Random(0)
    kept = [dataclasses.replace(c, runs=tuple(r for r in c.runs if draw.random() < 0.7)) for c in table.cells]
    part = dataclasses.replace(table, cells=tuple(c for c in kept if c.runs))
    again, spent = searched(oracle, part, SECONDS)
    check_complete(oracle, again, SECONDS)
    assert spent > 0
    assert again.best(SECONDS) == table.best(SECONDS)


def test_a_bound_never_wins(oracle: Any) -> None:
    reached = oracle.Run(7000, 9000.0, 90.0, None, "goal", None, 0.4)
    censored = oracle.Run(7000, None, None, 1000.0, "cap", 1000, 0.1)
    table = empty(oracle).with_runs([(128, 0.1, reached), (128, 0.2, censored)])
    assert table.best(SECONDS).learning_rate == 0.1
    assert table.at(128)[0].score() < table.at(128)[1].score()


def test_a_row_holds_the_crossing_or_the_bound_that_the_trial_gave(oracle: Any) -> None:
    """Linear before the first evaluation: from loss 2 to 0.4 in 1,000 examples, 0.5 is crossed at 937.5."""

    def line(examples: int, loss: float) -> Evaluation:
        return Evaluation(examples // 8, examples, {"loss": loss}, {"loss": loss}, 0.0, 0.0)

    def record(losses: list[float], ended_by: str, cap: int | None) -> TrialRecord:
        trace = tuple(line(1000 * i, loss) for i, loss in enumerate(losses))
        spec = TrialSpec(Arm(8, 0.1), 7000, StopRule(50_000, 1000, 5.0, GOAL, cap))
        result = TrialResult("not_reached", ended_by, "", trace[-1].step, trace[-1].examples, trace)
        return TrialRecord(spec, result, Conditions())

    run = oracle.run_of(record([2.0, 0.4, 0.3, 0.3], "goal", 9000), GOAL)
    assert (run.examples, run.steps, run.bound, run.cap) == (pytest.approx(937.5), pytest.approx(937.5 / 8), None, 9000)
    capped = oracle.run_of(record([2.0, 0.9, math.nan, 0.8], "cap", 3000), GOAL)
    assert (capped.examples, capped.bound, capped.lowest_loss) == (None, 3000.0, 0.8)
    given_up = oracle.run_of(record([2.0, 0.9, 1.0, 1.1], "patience", 4000), GOAL)
    assert (given_up.bound, given_up.ended_by) == (50_000.0, "patience")

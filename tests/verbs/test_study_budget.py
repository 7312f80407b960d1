"""Is the budget never passed, what it left out said, and a larger one a continuation?"""

from __future__ import annotations

from pathlib import Path

import pytest

from batchscope.task import Task
from batchscope.testing.examples import bits

from .conftest import Ask, Copies
from .studies import Heard, data_of, hearing, kinds, records


@pytest.mark.parametrize("budget", [1, 2.5, 12, 30, 60])
def test_the_budget_is_never_passed_and_what_it_left_out_is_said(
    small: Task, ask: Ask, path: Path, budget: float
) -> None:
    result = ask(small, seeds=2, budget=budget)
    data = data_of(path)
    (reference,) = data.reference
    limit = max(budget * data.reference_examples, reference.result.examples)
    spent = sum(t.result.examples for t in records(data))
    assert spent <= limit
    left_out = [n for n in result.notes if "were left out" in n]
    whole = len(data.held) == 4 and len(data.tuned) == 4
    assert bool(left_out) != whole
    assert len({len([t for t in data.tuning if t.spec.arm.batch_size == b]) for b in (16, 64)}) == 1
    assert data.notes == ()  # nothing of it is stored: a larger budget lifts it
    assert ask(small, seeds=2, budget=budget) == result


def test_a_larger_budget_goes_on_where_a_smaller_one_stopped(small: Task, ask: Ask, path: Path, tmp_path: Path) -> None:
    truth = ask(small, policy="held", seeds=3, store=tmp_path / "truth.db")
    small_one = ask(small, policy="held", seeds=3, budget=6)
    assert sum(r.seeds for r in small_one.rows) < 6
    heard: Heard = []
    result = ask(small, policy="held", seeds=3, budget=1000, listen=hearing(heard))
    assert len(kinds(heard, "started")) == 6 - sum(r.seeds for r in small_one.rows)
    assert not any("left out" in note for note in result.notes)
    assert [r.examples_to_goal for r in result.rows] == [r.examples_to_goal for r in truth.rows]


def test_a_search_that_the_budget_cut_short_can_be_finished(
    small: Task, ask: Ask, path: Path, finished: Copies
) -> None:
    truth = data_of(finished("tuned", path.with_name("truth.db")))
    cut = ask(small, policy="tuned", budget=14)
    assert max(r.tuning_trials for r in cut.rows) < 5
    ask(small, policy="tuned")
    data = data_of(path)
    assert bits([data.choices, [t.spec for t in data.tuning]]) == bits([truth.choices, [t.spec for t in truth.tuning]])
    chosen = {(c.batch_size, c.learning_rate) for c in data.choices}
    assert chosen <= {(t.spec.arm.batch_size, t.spec.arm.learning_rate) for t in data.tuned}

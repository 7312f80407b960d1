"""Does `--dry-run` name the plan that the study then runs, and a price that it keeps?"""

from __future__ import annotations

from pathlib import Path

import pytest

import batchscope as bs
from batchscope.errors import StoreError
from batchscope.store.sqlite import open_store
from batchscope.sweep.plan import MOST_RATES
from batchscope.task import Task
from batchscope.verbs.price import price


def test_the_plan_is_what_the_study_runs_and_the_price_is_not_passed(small: Task, tmp_path: Path) -> None:
    store = tmp_path / "a.db"
    asked = {"batch_sizes": (16, 64), "seeds": 2, "store": store}
    before = price(small, **asked)
    assert not store.exists()
    assert before["at_most"]["reference_runs"] is None
    assert "not measured yet" in before["sentences"][2]
    result = bs.study(small, **asked, draw=False)
    with open_store(store, read_only=True) as opened:
        data = opened.study_data(opened.studies()[0].id)
    assert before["trials"] == {"held": len(data.held), "tuning": len(data.tuning), "tuned": len(data.tuned)}
    assert before["seeds"] == list(data.settings.seeds)
    assert (before["budget_examples_per_trial"], before["cadence_examples"]) == (3072, 51)
    most = before["at_most"]
    assert result.spent.examples <= most["examples"]
    assert most["examples"] == (2 + MOST_RATES + 2) * (3072 + 15 + 3072 + 63) + 3072 + 15
    assert result.spent.seconds < 10 * most["seconds"] * 2  # a rough estimate, on a machine shared with others
    assert most["bytes"] > 100 * 600
    after = price(small, **asked)
    assert after["at_most"]["reference_runs"] == pytest.approx(most["examples"] / data.reference_examples)
    assert after["at_most"]["examples"] == most["examples"]


def test_a_budget_bounds_the_price_once_the_reference_run_is_known(small: Task, tmp_path: Path) -> None:
    asked = {"batch_sizes": (64,), "seeds": 1, "policy": "held", "store": tmp_path / "a.db"}
    assert price(small, **asked, budget=2.0)["at_most"]["reference_runs"] is None
    bs.study(small, **asked, draw=False)
    with open_store(tmp_path / "a.db", read_only=True) as opened:
        examples, _ = opened.reference(opened.studies()[0].id) or (0.0, False)
    tight = price(small, **asked, budget=2.0)["at_most"]
    assert (tight["reference_runs"], tight["examples"]) == (2.0, int(2.0 * examples))
    assert price(small, **asked, budget=1e9)["at_most"] != tight


@pytest.mark.parametrize(("policy", "trials"), [("held", (3, 0, 0)), ("tuned", (0, 5, 3)), ("both", (3, 5, 3))])
def test_each_policy_has_its_trials(small: Task, tmp_path: Path, policy: str, trials: tuple[int, ...]) -> None:
    plan = price(small, batch_sizes=(64,), policy=policy, store=tmp_path / "a.db")
    assert tuple(plan["trials"].values()) == trials
    assert plan["policies"] == (["held", "tuned"] if policy == "both" else [policy])


def test_a_store_that_is_not_ours_is_refused(small: Task, tmp_path: Path) -> None:
    (tmp_path / "a.db").write_text("somebody's notes\n" * 100)
    with pytest.raises(StoreError, match="is not a Batchscope store"):
        price(small, store=tmp_path / "a.db")

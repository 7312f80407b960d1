"""Does `batchscope recommend` take a decision in worker processes, print one JSON object, and spend nothing twice?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import SMALL, Here

ASKED = ("recommend", str(SMALL), "--budget", "4", "--no-report")
MEASURED = {"estimate", "low", "high", "n", "censored", "interval"}
KEYS = {
    *("batch_size", "learning_rate", "micro_batch_size", "accumulation", "devices", "seconds_to_goal"),
    *("steps_to_goal", "examples_to_goal", "cost", "good_batch_sizes", "p_best", "binding_limit", "verified"),
    *("critical_batch_size", "spent"),
}


def test_a_dry_run_stores_nothing(here: Here, tmp_path: Path) -> None:
    ended = here(*ASKED, "--dry-run", "--json")
    plan = json.loads(ended.out)
    assert (ended.code, plan["budget"], plan["at_most"]["reference_runs"]) == (0, 4.0, 4.0)
    assert not (tmp_path / "batchscope.db").exists()


def test_one_json_object_and_the_same_answer_from_the_store(here: Here) -> None:
    ended = here(*ASKED, "--json")
    assert ended.code == 0, ended.err
    answer = json.loads(ended.out)
    assert set(answer) >= KEYS
    assert set(answer["spent"]) == {"examples", "steps", "seconds", "reference_runs"}
    assert answer["spent"]["reference_runs"] <= 4.0
    for name in ("seconds_to_goal", "steps_to_goal", "examples_to_goal", "cost", "critical_batch_size"):
        assert set(answer[name]) == MEASURED
    assert answer["batch_size"] == answer["micro_batch_size"] * answer["accumulation"]
    assert sum(answer["p_best"].values()) == pytest.approx(1.0)
    again = here(*ASKED, "--json")
    assert json.loads(again.out) == answer
    assert "trials" not in again.err.replace("trials stored", "")
    shown = here("recommend", str(SMALL), "--budget", "4", "--no-report")
    assert f"{answer['batch_size']:,}" in shown.out
    assert len(json.loads(here("list", "--json").out)["advices"]) == 1


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--devices", "2"), 1, "expected 1 device, got 2"),
        (("--budget", "0"), 2, "expected a budget in reference runs above 0"),
        (("--objective", "fast"), 2, "expected an objective of time, cost, examples, energy"),
        (("--price", "-1"), 2, "expected a price of a device for an hour above 0"),
        (("--best-in", "3", "--best-in-examples", "9"), 2, "expected one of --best-in and --best-in-examples"),
        (("--best-in", "3", "--objective", "cost"), 2, "the lowest validation loss is the objective"),
        (("--memory-limit", "much"), 2, "expected --memory-limit as a number of bytes"),
    ],
)
def test_a_bad_option_is_one_sentence(here: Here, options: tuple[str, ...], code: int, said: str) -> None:
    ended = here("recommend", str(SMALL), *options)
    assert (ended.code, ended.out) == (code, "")
    assert said in ended.err

"""Does `batchscope recommend` take a decision in worker processes, print one JSON object, and spend nothing twice?"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from batchscope.records import Conditions, StepTiming, TimingPass
from batchscope.store.sqlite import open_store
from batchscope.sweep.executors.inline import InlineExecutor
from batchscope.task import load_task
from batchscope.training.device import pick_device, set_up
from batchscope.verbs import profile as profiling
from batchscope.verbs.recommend import timed_elsewhere

from .conftest import SMALL, Here, sentence

ASKED = ("recommend", str(SMALL), "--budget", "4", "--no-report")
MEASURED = {"estimate", "low", "high", "n", "censored", "interval"}
KEYS = {
    *("batch_size", "learning_rate", "micro_batch_size", "accumulation", "devices", "seconds_to_goal"),
    *("steps_to_goal", "examples_to_goal", "cost", "good_batch_sizes", "p_best", "binding_limit", "verified"),
    *("critical_batch_size", "spent"),
}
HARD = Path(__file__).parents[1] / "verbs" / "hard_tasks.py"


@pytest.fixture
def profiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default store of an empty folder, with a made-up profile of two tasks: nothing is left to be timed.

    Trials run in this process: that workers run the same ones is a test of the verb.
    """
    monkeypatch.setattr("batchscope.verbs.deciding.executor_for", lambda task, on: InlineExecutor(load_task(task)))
    conditions = set_up(1, pick_device(), "fp32")
    with open_store(tmp_path / "batchscope.db") as store:
        for reference in (str(SMALL), f"{HARD}:out_of_reach"):
            profile = timed_elsewhere(profiling.ask(reference), seconds(conditions))
            store.save_profile(dataclasses.replace(profile, workers=1, measured_at="2026-03-01T12:00:00+00:00"))
    return tmp_path / "batchscope.db"


def seconds(conditions: Conditions) -> TimingPass:
    """Seconds per step that a batch of 64 doubles."""
    timings = tuple(StepTiming(b, 10, (1e-3 * (1 + b / 64),) * 10, ()) for b in (8, 16, 32, 64, 128, 256))
    return TimingPass(8, timings, conditions)


# --- the answer ---


def test_one_json_object_and_the_same_answer_from_the_store(here: Here, profiled: Path) -> None:
    """That a profile is measured where the store has none, and trials run in workers, are tests of the verbs."""
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


def test_what_no_batch_size_reaches_is_an_answer(here: Here, profiled: Path) -> None:
    asked = ("recommend", f"{HARD}:out_of_reach", "--budget", "3", "--no-report")
    ended = here(*asked, "--json")
    answer = json.loads(ended.out)
    assert (ended.code, answer["answered"], answer["batch_size"], answer["verified"]) == (0, False, None, False)
    assert answer["spent"]["reference_runs"] <= 3.0
    shown = here(*asked)
    assert shown.code == 0
    assert "No batch size reached validation loss at most 0.05" in " ".join(shown.out.split())


def test_a_small_budget_gives_ratios_and_a_price_gives_costs(here: Here, profiled: Path) -> None:
    asked = ("recommend", str(SMALL), "--no-report", "--json")
    ratios = json.loads(here(*asked, "--budget", "2").out)
    assert ratios["evidence"] == "throughput and noise scale"
    assert ratios["spent"]["reference_runs"] <= 2.0
    assert ratios["seconds_to_goal"]["estimate"] is ratios["cost"]["estimate"] is None
    assert ratios["over_own"]["estimate"] > 0
    ended = here(*asked, "--budget", "4", "--objective", "cost", "--price", "3.6")
    answer = json.loads(ended.out)
    assert "B=16 lr=0.4 seed 0" not in ended.err.replace("stored", "")  # the reference run is shared
    assert answer["objective"] == "cost"
    assert answer["cost"]["estimate"] == pytest.approx(answer["seconds_to_goal"]["estimate"] / 1000)


def test_the_lowest_loss_in_some_examples(here: Here, profiled: Path) -> None:
    ended = here("recommend", str(SMALL), "--best-in-examples", "600", "--budget", "4", "--no-report", "--json")
    answer = json.loads(ended.out)
    assert ended.code == 0
    assert 0 < answer["lowest_loss"]["low"] <= answer["lowest_loss"]["estimate"] <= answer["lowest_loss"]["high"]
    assert answer["seconds_to_goal"]["estimate"] is None
    assert answer["spent"]["reference_runs"] <= 4.0


# --- what is refused, and what it would cost ---


def test_a_dry_run_stores_nothing(here: Here, tmp_path: Path) -> None:
    ended = here(*ASKED, "--dry-run", "--json")
    plan = json.loads(ended.out)
    assert (ended.code, plan["budget"], plan["at_most"]["reference_runs"]) == (0, 4.0, 4.0)
    assert not (tmp_path / "batchscope.db").exists()
    said = here(*ASKED, "--dry-run").out
    assert said.startswith(plan["sentences"][0])
    assert "At most 4 reference runs" in said


def test_energy_without_a_meter_is_one_sentence(here: Here, profiled: Path) -> None:
    ended = here("recommend", str(SMALL), "--objective", "energy", "--no-report", "--json")
    sentence(ended, 1, "expected an energy meter on this device for --objective energy", "use --objective time")
    assert json.loads(here("list", "--json").out)["advices"] == []


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--devices", "0"), 2, "expected a number of devices from 1 up, got 0"),
        (("--devices", "1000"), 1, "on this machine"),
        (("--budget", "0"), 2, "expected a budget in reference runs above 0"),
        (("--budget", "nan"), 2, "expected a budget in reference runs above 0"),
        (("--budget", "much"), 2, "--budget"),
        (("--objective", "fast"), 2, "expected an objective of time, cost, examples, energy"),
        (("--price", "-1"), 2, "expected a price of a device for an hour above 0"),
        (("--best-in", "3", "--best-in-examples", "9"), 2, "expected one of --best-in and --best-in-examples"),
        (("--best-in", "3", "--objective", "cost"), 2, "the lowest validation loss is the objective"),
        (("--best-in", "0"), 2, "expected --best-in as seconds above 0"),
        (("--best-in-examples", "0"), 2, "expected a number of examples above 0"),
        (("--memory-limit", "much"), 2, "expected --memory-limit as a number of bytes"),
        (("--seed", "-1"), 2, "expected a seed from 0 up"),
        (("--dance",), 2, "No such option"),
    ],
    ids=str,
)
def test_a_bad_option_is_one_sentence(
    here: Here, tmp_path: Path, options: tuple[str, ...], code: int, said: str
) -> None:
    ended = here("recommend", str(SMALL), *options)
    assert (ended.code, ended.out) == (code, "")
    assert said in ended.err
    assert "Traceback" not in ended.err
    assert not (tmp_path / "batchscope.db").exists()

"""Does `list` tell what the store holds: studies, profiles, noise runs, advices, scalings, sharpnesses, matches?"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from batchscope.records import AdviceQuestion, MatchData, MatchQuestion, Network, ScalingQuestion, SharpnessQuestion
from batchscope.store import open_store
from batchscope.testing.example_match import make_match_data, make_small_match
from batchscope.testing.example_noise import make_noise_run
from batchscope.testing.example_profiles import at, make_profile
from batchscope.testing.example_scaling import make_scaling_data
from batchscope.testing.example_sharpness import make_file_point, make_sharpness_data
from batchscope.testing.examples import fill
from batchscope.testing.store_advice import TRIED, make_advice_data

from .conftest import Here, only_study

ODD_NAME = "[bold]not markup[/bold]"


def test_profiles_are_listed_after_studies_oldest_first(here: Here) -> None:
    with open_store("batchscope.db") as store:
        fill(store)
        ids = [store.save_profile(make_profile(measured_at=at(hour), task=ODD_NAME)) for hour in (7, 5)]
        bare = make_profile(measured_at=at(6), timing=None, memory=None)
        ids.insert(1, store.save_profile(bare))
    lines = here("list").out.splitlines()
    assert "a task  1 of 3 trials  unfinished" in lines[0]
    assert [line[:12] for line in lines[1:]] == ids[::-1]
    assert lines[1] == f"{ids[2]}  {ODD_NAME}  profile of batch sizes 32, 64; largest that fits 64  {at(5)}"
    assert lines[2] == f"{ids[1]}  a task  profile without timings  {at(6)}"


def test_a_profile_in_the_json_of_list(here: Here, profile_id: str) -> None:
    listed = json.loads(here("list", "--json").out)
    assert [study["id"] for study in listed["studies"]] == [only_study()]
    assert listed["profiles"] == [
        {
            "id": profile_id,
            "task": "a task",
            "fingerprint": "f" * 16,
            "measured_at": make_profile().measured_at,
            "device": "cpu",
            "device_name": "a processor",
            "precision": "fp32",
            "threads": 2,
            "batch_sizes": [32, 64],
            "largest_micro_batch_size": 64,
            "limit_bytes": 256 * 1024**2,
        }
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "noise measured at 3 steps; goal crossed at 1,234 examples"),
        ({"outcome": "not_reached", "crossed_at": None}, "noise measured at 3 steps; goal not crossed"),
        ({"outcome": "not_reached", "crossed_at": None, "goal": None}, "noise measured at 3 steps; no goal"),
        ({"outcome": "diverged", "crossed_at": None, "goal": None}, "noise measured at 3 steps; diverged"),
        ({"measurements": make_noise_run().measurements * 700}, "noise measured at 2,100 steps; goal crossed at 1,234"),
        ({"measurements": make_noise_run().measurements[:1]}, "noise measured at 1 step; goal crossed"),
    ],
)
def test_a_noise_run_in_list(here: Here, changes: dict[str, Any], words: str) -> None:
    run = make_noise_run(**changes, task=ODD_NAME)
    with open_store("batchscope.db") as store:
        noise_id = store.save_noise_run(run)
    (line,) = here("list").out.splitlines()
    assert line.startswith(f"{noise_id}  {ODD_NAME}  {words}")
    assert line.endswith(f"  {run.measured_at}")


def test_noise_runs_and_later_documents_are_listed_oldest_first(here: Here, profile_id: str) -> None:
    with open_store("batchscope.db") as store:
        matches = [store.save_match(make_small_match(measured_at=at(hour))) for hour in (2, 0)]
        sharpnesses = [store.save_sharpness(make_sharpness_data(measured_at=at(hour))) for hour in (3, 1)]
        scalings = [store.save_scaling(make_scaling_data(measured_at=at(hour))) for hour in (4, 2)]
        advices = [store.save_advice(make_advice_data(measured_at=at(hour))) for hour in (8, 6)]
        runs = [store.save_noise_run(make_noise_run(measured_at=at(hour))) for hour in (7, 5)]
    lines = [line[:12] for line in here("list").out.splitlines()]
    documents = [*reversed(runs), *reversed(advices), *reversed(scalings), *reversed(sharpnesses)]
    documents += reversed(matches)
    assert lines == [only_study(), profile_id, *documents]
    listed = json.loads(here("list", "--json").out)
    assert [advice["id"] for advice in listed["advices"]] == advices[::-1]
    assert [scaling["id"] for scaling in listed["scalings"]] == scalings[::-1]
    assert [sharpness["id"] for sharpness in listed["sharpnesses"]] == sharpnesses[::-1]
    assert [match["id"] for match in listed["matches"]] == matches[::-1]


def test_a_noise_run_in_the_json_of_list(here: Here, noise_id: str) -> None:
    run = make_noise_run()
    assert json.loads(here("list", "--json").out)["noise_runs"] == [
        {
            "id": noise_id,
            "task": "a task",
            "fingerprint": "f" * 16,
            "measured_at": run.measured_at,
            "device": "cpu",
            "device_name": "a processor",
            "precision": "fp32",
            "threads": 2,
            "batch_size": 32,
            "learning_rate": 0.1,
            "source": "examples",
            "every": 4,
            "measurements": 3,
            "outcome": "reached",
            "crossed_at": 1234.5,
        }
    ]


@pytest.mark.parametrize(
    ("question", "words"),
    [
        (AdviceQuestion(10), "the least time within 10 reference runs"),
        (AdviceQuestion(0.5, "cost", 2.5), "the least cost within 0.5 reference runs"),
        (AdviceQuestion(1, "examples"), "the fewest examples within 1 reference run"),
        (AdviceQuestion(1e6, "energy"), "the least energy within 1,000,000 reference runs"),
        (AdviceQuestion(3, best_in_seconds=90.5), "the lowest validation loss in 90.5 s within 3 reference runs"),
        (AdviceQuestion(3, best_in_examples=60_000), "the lowest validation loss in 60,000 examples within 3 refer"),
    ],
)
@pytest.mark.parametrize(("trials", "spent"), [(4, "4 trials, 14,080 examples"), (1, "1 trial, 14,080 examples")])
def test_an_advice_in_list(here: Here, question: AdviceQuestion, words: str, trials: int, spent: str) -> None:
    data = make_advice_data(question=question, trials=TRIED[:trials], task=ODD_NAME)
    with open_store("batchscope.db") as store:
        advice_id = store.save_advice(data)
    (line,) = here("list").out.splitlines()
    assert line.startswith(f"{advice_id}  {ODD_NAME}  advice for {words}")
    assert line.endswith(f"; {spent}  {data.measured_at}")


def test_an_advice_in_the_json_of_list(here: Here, advice_id: str) -> None:
    assert json.loads(here("list", "--json").out)["advices"] == [
        {
            "id": advice_id,
            "task": "a task",
            "fingerprint": "f" * 16,
            "measured_at": make_advice_data().measured_at,
            "device": "cpu",
            "device_name": "a processor",
            "precision": "fp32",
            "threads": 2,
            "budget": 10.0,
            "objective": "time",
            "price": None,
            "memory_limit": None,
            "devices": 1,
            "seed": 0,
            "best_in_seconds": None,
            "best_in_examples": None,
            "trials": 4,
            "examples": 14_080,
            "ended": "firm",
        }
    ]


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ((1, 2, 4), "scaling of batch sizes 2, 32 on 1, 2, 4 devices (cpu)"),
        ((1,), "scaling of batch sizes 2, 32 on 1 device (cpu)"),
        ((), "scaling without timings (cpu)"),
    ],
)
def test_a_scaling_in_list(here: Here, counts: tuple[int, ...], words: str) -> None:
    data = make_scaling_data(counts=counts, batch_sizes=(2, 32), task=ODD_NAME)
    with open_store("batchscope.db") as store:
        scaling_id = store.save_scaling(data)
    assert here("list").out == f"{scaling_id}  {ODD_NAME}  {words}  {data.measured_at}\n"


def test_a_scaling_in_the_json_of_list(here: Here) -> None:
    question = ScalingQuestion((1, 2, 8), (16, 32), Network(latency=5e-6, bandwidth=2.5e10), largest=64, seed=7)
    data = make_scaling_data(counts=(1, 2), batch_sizes=(16, 32), question=question, study_id="0123456789ab")
    with open_store("batchscope.db") as store:
        scaling_id = store.save_scaling(data)
    assert json.loads(here("list", "--json").out)["scalings"] == [
        {
            "id": scaling_id,
            "task": "a task",
            "fingerprint": "f" * 16,
            "measured_at": data.measured_at,
            "device": "cpu",
            "device_name": "a processor",
            "precision": "fp32",
            "threads": 1,
            "device_counts": [1, 2, 8],
            "batch_sizes": [16, 32],
            "network": {"latency": 5e-6, "bandwidth": 2.5e10},
            "largest": 64,
            "seed": 7,
            "measured": [1, 2],
            "study_id": "0123456789ab",
            "examples": 4096,
        }
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "sharpness at 13 points of batch sizes 32, 512; 1,000 examples"),
        ({"points": make_sharpness_data().points[:1]}, "sharpness at 1 point of batch size 32; 1,000 examples"),
        ({"points": (make_file_point("a"), make_file_point("b"))}, "sharpness at 2 points; 1,000 examples"),
    ],
)
def test_a_sharpness_in_list(here: Here, changes: dict[str, Any], words: str) -> None:
    data = make_sharpness_data(**changes, task=ODD_NAME)
    with open_store("batchscope.db") as store:
        sharpness_id = store.save_sharpness(data)
    assert here("list").out == f"{sharpness_id}  {ODD_NAME}  {words}  {data.measured_at}\n"


def test_a_sharpness_in_the_json_of_list(here: Here) -> None:
    labels = ("one", "other", "third")
    question = SharpnessQuestion("0123456789ab", labels, at="last", examples=5000, causes=True, seed=7)
    points = (make_file_point("one"), make_file_point("other"))
    data = make_sharpness_data(points=points, question=question, study_id="0123456789ab")
    with open_store("batchscope.db") as store:
        sharpness_id = store.save_sharpness(data)
    assert json.loads(here("list", "--json").out)["sharpnesses"] == [
        {
            "id": sharpness_id,
            "task": "a task",
            "fingerprint": "f" * 16,
            "measured_at": data.measured_at,
            "device": "cpu",
            "device_name": "a processor",
            "precision": "fp32",
            "threads": 2,
            "study_id": "0123456789ab",
            "labels": ["one", "other", "third"],
            "at": "last",
            "examples": 1000,
            "epsilons": [1e-3, 5e-4],
            "pictures": True,
            "causes": True,
            "seed": 7,
            "measured": ["one", "other"],
            "parameters": 7850,
        }
    ]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (make_match_data(), "match of batch sizes 128, 512 against 32; 3 remedies, 63 runs"),
        (
            make_small_match(question=MatchQuestion((512,), 32, 0.1, ("none",), (1,), (2,), 10, 5), runs=()),
            "match of batch size 512 against 32; 1 remedy, 0 runs",
        ),
    ],
)
def test_a_match_in_list(here: Here, data: MatchData, words: str) -> None:
    named = dataclasses.replace(data, task=ODD_NAME)
    with open_store("batchscope.db") as store:
        match_id = store.save_match(named)
    assert here("list").out == f"{match_id}  {ODD_NAME}  {words}  {data.measured_at}\n"


def test_a_match_in_the_json_of_list(here: Here) -> None:
    question = MatchQuestion((256, 512), 32, 0.1, ("none", "LARS"), (1, 2), (9,), 4096, 512, 3, False, (1, 4), 80)
    data = make_small_match(question=question)
    with open_store("batchscope.db") as store:
        match_id = store.save_match(data)
    assert json.loads(here("list", "--json").out)["matches"] == [
        {
            "id": match_id,
            "task": "a task",
            "fingerprint": "f" * 16,
            "measured_at": data.measured_at,
            "device": "cpu",
            "device_name": "a processor",
            "precision": "fp32",
            "threads": 2,
            "batch_sizes": [256, 512],
            "own_batch_size": 32,
            "own_learning_rate": 0.1,
            "remedies": ["none", "LARS"],
            "seeds": [1, 2],
            "race_seeds": [9],
            "budget_examples": 4096,
            "cadence_examples": 512,
            "confirm": 3,
            "ladder": False,
            "devices": [1, 4],
            "budget": 80.0,
            "baseline_learning_rate": 0.05,
            "runs": 2,
            "examples": 2 * 65_536,
        }
    ]


def test_an_empty_store_has_none(here: Here) -> None:
    open_store("batchscope.db").close()
    assert here("list").out == "no studies, profiles, noise runs, advices, scalings, sharpnesses or matches yet\n"
    kinds = ("studies", "profiles", "noise_runs", "advices", "scalings", "sharpnesses", "matches")
    assert json.loads(here("list", "--json").out) == {kind: [] for kind in kinds}

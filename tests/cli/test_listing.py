"""Do `list`, `show` and `export` tell what the store holds, profiles, noise runs and advices beside studies?"""

from __future__ import annotations

import csv
import io
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from batchscope.records import AdviceData, AdviceQuestion, GradientNorms, NoiseRun, ProfileData, Tried, from_plain
from batchscope.store import open_store
from batchscope.testing.example_noise import make_noise_run
from batchscope.testing.example_profiles import PHASED, SPLITS, at, make_profile
from batchscope.testing.examples import fill, make_settings
from batchscope.testing.store_advice import TRIED, make_advice_data

from .conftest import Here

ODD_NAME = "[bold]not markup[/bold]"


@pytest.fixture
def profile_id(here: Here) -> str:
    """The id of the one profile in a store, beside a study, where `here` stands."""
    with open_store("batchscope.db") as store:
        fill(store)
        return store.save_profile(make_profile())


@pytest.fixture
def noise_id(here: Here) -> str:
    """The id of the one noise run in a store, where `here` stands."""
    with open_store("batchscope.db") as store:
        return store.save_noise_run(make_noise_run())


@pytest.fixture
def advice_id(here: Here) -> str:
    """The id of the one advice in a store, where `here` stands."""
    with open_store("batchscope.db") as store:
        return store.save_advice(make_advice_data())


def study_id() -> str:
    with open_store("batchscope.db", read_only=True) as store:
        return store.studies()[0].id


# --- list ---


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
    assert [study["id"] for study in listed["studies"]] == [study_id()]
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


def test_noise_runs_and_then_advices_are_listed_last_oldest_first(here: Here, profile_id: str) -> None:
    with open_store("batchscope.db") as store:
        advices = [store.save_advice(make_advice_data(measured_at=at(hour))) for hour in (8, 6)]
        runs = [store.save_noise_run(make_noise_run(measured_at=at(hour))) for hour in (7, 5)]
    listed = [line[:12] for line in here("list").out.splitlines()]
    assert listed == [study_id(), profile_id, *reversed(runs), *reversed(advices)]
    assert [advice["id"] for advice in json.loads(here("list", "--json").out)["advices"]] == advices[::-1]


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


def test_an_empty_store_has_none(here: Here) -> None:
    open_store("batchscope.db").close()
    assert here("list").out == "no studies, profiles, noise runs or advices yet\n"
    listed = {"studies": [], "profiles": [], "noise_runs": [], "advices": []}
    assert json.loads(here("list", "--json").out) == listed


# --- show ---


def test_show_of_a_profile_hands_what_is_stored_to_analysis_and_printer(
    here: Here, profile_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What these say is theirs to test; here: they get the whole record, and their answer is printed."""
    analysis, printer = types.ModuleType("analysis"), types.ModuleType("printer")
    vars(analysis).update(analyse_profile=lambda data: ("answer", data), profile_to_json=lambda result: {result[0]: 1})
    vars(printer).update(print_profile=lambda result, console: console.print(result[0], result[1] == make_profile()))
    monkeypatch.setitem(sys.modules, "batchscope.analysis.profile", analysis)
    monkeypatch.setitem(sys.modules, "batchscope.report.profile_terminal", printer)
    assert here("show", profile_id[:11]).out == "answer True\n"
    assert json.loads(here("show", profile_id, "--json").out) == {"answer": 1}


@pytest.mark.parametrize("tuned", [True, False])
def test_show_of_a_noise_run_hands_it_over_with_the_tuned_study(
    here: Here, noise_id: str, tuned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store("batchscope.db") as store:
        study = store.save_study(make_settings(policies=("held", "tuned") if tuned else ("held",)))
        store.finish_study(study)
        beside = (store.study_data(study), study) if tuned else (None, "")
    expected = (make_noise_run(), *beside)
    monkeypatch.setattr("batchscope.verbs.report.analyse_noise", lambda *given: given)
    monkeypatch.setattr("batchscope.analysis.noise.noise_to_json", lambda given: {"study": given[2]})
    monkeypatch.setattr(
        "batchscope.report.noise_terminal.print_noise", lambda given, console: console.print(given == expected)
    )
    assert here("show", noise_id[:11]).out == "True\n"
    assert json.loads(here("show", noise_id, "--json").out) == {"study": beside[1]}


def test_the_answer_of_a_noise_run_is_shown_and_drawn(here: Here, noise_id: str, tmp_path: Path) -> None:
    shown = json.loads(here("show", noise_id, "--json").out)
    assert (shown["task"], shown["fingerprint"], shown["against_sweep"]) == ("a task", "f" * 16, None)
    assert "a task" in here("show", noise_id).out
    page = tmp_path / f"batchscope-a-task-noise-{noise_id[:8]}.html"
    assert here("report", noise_id[:11]).out == f"{page}\n"
    assert "a task" in page.read_text()


def test_show_of_an_advice_hands_it_to_analysis_words_and_printer(
    here: Here, advice_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchscope.verbs.report.analyse_advice", lambda data: [data == make_advice_data()])
    monkeypatch.setattr("batchscope.verbs.report.worded", lambda answer: [*answer, "worded"])
    monkeypatch.setattr("batchscope.analysis.advice.advice_to_json", lambda answer: {"answer": answer})
    monkeypatch.setattr(
        "batchscope.report.advice_terminal.print_advice", lambda answer, console: console.print(*answer)
    )
    assert here("show", advice_id[:11]).out == "True worded\n"
    assert json.loads(here("show", advice_id, "--json").out) == {"answer": [True, "worded"]}


def test_the_answer_of_an_advice_is_shown_and_drawn(here: Here, advice_id: str, tmp_path: Path) -> None:
    shown = json.loads(here("show", advice_id, "--json").out)
    assert (shown["task"], shown["fingerprint"], shown["report"]) == ("a task", "f" * 16, None)
    assert shown["sentences"]
    assert "a task" in here("show", advice_id).out
    beside, elsewhere = tmp_path / f"batchscope-a-task-advice-{advice_id[:8]}.html", tmp_path / "page.html"
    assert here("report", advice_id[:11]).out == f"{beside}\n"
    assert here("report", advice_id, "--report", str(elsewhere)).out == f"{elsewhere}\n"
    assert all("a task" in page.read_text() for page in (beside, elsewhere))


def test_show_of_a_study_beside_a_profile(here: Here, profile_id: str) -> None:
    assert json.loads(here("show", study_id(), "--json").out)["rows"][0]["seeds"] == 1


@pytest.mark.parametrize("command", ["show", "export"])
def test_an_id_that_names_none_or_two_is_one_sentence(here: Here, command: str, profile_id: str) -> None:
    unknown = here(command, "zzz")
    assert (unknown.code, unknown.out) == (1, "")
    assert unknown.err.startswith(
        "batchscope: no study, profile, noise run or advice in batchscope.db begins with 'zzz': `batchscope list`"
    )
    both = here(command, "")
    assert (both.code, both.out) == (1, "")
    assert "1 study and 1 profile in batchscope.db begin with ''" in both.err
    assert f"give more of study {study_id()}, profile {profile_id}" in both.err


# --- export ---


def test_the_csv_of_a_profile_holds_every_window(here: Here, profile_id: str) -> None:
    ended = here("export", profile_id[:11])
    rows = list(csv.DictReader(io.StringIO(ended.out)))
    assert ended.out.splitlines()[0] == "kind,batch_size,micro_batch_size,phase,round,seconds"

    def windows(*head: object, phase: str) -> tuple[float, ...]:
        found = [row for row in rows if [*row.values()][:4] == [*map(str, head), phase]]
        assert [int(row["round"]) for row in found] == list(range(len(found)))
        return tuple(float(row["seconds"]) for row in found)

    expected = 0
    for timing in PHASED.timings:
        for phase, seconds in {
            "whole": timing.seconds_per_step,
            "reference": timing.reference,
            **timing.phases,
        }.items():
            assert windows("step", timing.batch_size, timing.batch_size, phase=phase) == seconds
            expected += len(seconds)
    for split in SPLITS:
        for phase, seconds in {"whole": split.seconds_per_step, "reference": split.reference}.items():
            assert windows("split", split.batch_size, split.micro_batch_size, phase=phase) == seconds
            expected += len(seconds)
    assert len(rows) == expected


def test_the_csv_of_a_profile_without_timings_is_its_header(here: Here) -> None:
    with open_store("batchscope.db") as store:
        bare = store.save_profile(make_profile(timing=None, splits=()))
    assert here("export", bare).out.splitlines() == ["kind,batch_size,micro_batch_size,phase,round,seconds"]


def test_the_csv_of_a_noise_run_holds_every_measurement(here: Here, noise_id: str) -> None:
    out = here("export", noise_id[:11]).out
    assert out.splitlines()[0] == (
        "step,examples,parts,part_size,batch_size,mean_squared,parts_squared,loss,learning_rate,steps"
    )
    rows = [{k: json.loads(v or "null") for k, v in row.items()} for row in csv.DictReader(io.StringIO(out))]
    assert from_plain(tuple[GradientNorms, ...], rows) == make_noise_run().measurements


def test_the_json_of_a_noise_run_is_the_record(here: Here, noise_id: str) -> None:
    assert from_plain(NoiseRun, json.loads(here("export", noise_id, "--json").out)) == make_noise_run()


def test_the_csv_of_an_advice_holds_every_trial(here: Here, advice_id: str) -> None:
    out = here("export", advice_id[:11]).out
    assert out.splitlines()[0] == (
        "role,batch_size,learning_rate,seed,reached,bound,provisional,lowest_loss,outcome,examples,steps,ended_by"
    )
    texts = ("role", "outcome", "ended_by")
    rows = [
        {k: v if k in texts else json.loads(v or "null") for k, v in row.items()}
        for row in csv.DictReader(io.StringIO(out))
    ]
    assert from_plain(tuple[Tried, ...], rows) == make_advice_data().trials


def test_the_json_of_an_advice_is_the_record(here: Here, advice_id: str) -> None:
    assert from_plain(AdviceData, json.loads(here("export", advice_id, "--json").out)) == make_advice_data()


def test_the_json_of_a_profile_is_the_record(here: Here, profile_id: str) -> None:
    assert from_plain(ProfileData, json.loads(here("export", profile_id, "--json").out)) == make_profile()


def test_the_export_of_a_study_has_the_profile_that_applies_to_it(here: Here, tmp_path: Path) -> None:
    with open_store(tmp_path / "batchscope.db") as store:
        study = store.save_study(make_settings())
        assert json.loads(here("export", study, "--json").out)["profile"] is None
        store.save_profile(make_profile())
    exported = json.loads(here("export", study, "--json").out)
    assert from_plain(ProfileData, exported["profile"]) == make_profile()
    assert here("export", study).out.startswith("role,batch_size,learning_rate,seed")

"""Do `list`, `show` and `export` tell what the store holds, profiles and noise runs beside studies?"""

from __future__ import annotations

import csv
import io
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from batchscope.records import GradientNorms, NoiseRun, ProfileData, from_plain
from batchscope.store import open_store
from batchscope.testing.example_noise import make_noise_run
from batchscope.testing.example_profiles import PHASED, SPLITS, at, make_profile
from batchscope.testing.examples import fill, make_settings

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


def test_noise_runs_are_listed_last_oldest_first(here: Here, profile_id: str) -> None:
    with open_store("batchscope.db") as store:
        late, early = (store.save_noise_run(make_noise_run(measured_at=at(hour))) for hour in (7, 5))
    assert [line[:12] for line in here("list").out.splitlines()] == [study_id(), profile_id, early, late]


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


def test_an_empty_store_has_none(here: Here) -> None:
    open_store("batchscope.db").close()
    assert here("list").out == "no studies, profiles or noise runs yet\n"
    assert json.loads(here("list", "--json").out) == {"studies": [], "profiles": [], "noise_runs": []}


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


def test_show_of_a_study_beside_a_profile(here: Here, profile_id: str) -> None:
    assert json.loads(here("show", study_id(), "--json").out)["rows"][0]["seeds"] == 1


@pytest.mark.parametrize("command", ["show", "export"])
def test_an_id_that_names_none_or_two_is_one_sentence(here: Here, command: str, profile_id: str) -> None:
    unknown = here(command, "zzz")
    assert (unknown.code, unknown.out) == (1, "")
    assert unknown.err.startswith(
        "batchscope: no study, profile or noise run in batchscope.db begins with 'zzz': `batchscope list`"
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

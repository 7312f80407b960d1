"""Do `list`, `show` and `export` tell what the store holds, profiles beside studies?"""

from __future__ import annotations

import csv
import io
import json
import sys
import types
from pathlib import Path

import pytest

from batchscope.records import ProfileData, from_plain
from batchscope.store import open_store
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


def test_an_empty_store_has_neither(here: Here) -> None:
    open_store("batchscope.db").close()
    assert here("list").out == "no studies and no profiles yet\n"
    assert json.loads(here("list", "--json").out) == {"studies": [], "profiles": []}


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


def test_show_of_a_study_beside_a_profile(here: Here, profile_id: str) -> None:
    assert json.loads(here("show", study_id(), "--json").out)["rows"][0]["seeds"] == 1


@pytest.mark.parametrize("command", ["show", "export"])
def test_an_id_that_names_none_or_two_is_one_sentence(here: Here, command: str, profile_id: str) -> None:
    unknown = here(command, "zzz")
    assert (unknown.code, unknown.out) == (1, "")
    assert unknown.err.startswith(
        "batchscope: no study or profile in batchscope.db begins with 'zzz': `batchscope list`"
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

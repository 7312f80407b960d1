"""Does `show` hand what is stored to the analysis, the words and the printer that belong to it, and `report` alike?"""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from pathlib import Path

import pytest

from batchscope.store import open_store
from batchscope.testing.example_match import make_small_match
from batchscope.testing.example_noise import make_noise_run
from batchscope.testing.example_profiles import make_profile
from batchscope.testing.example_scaling import make_scaling_data
from batchscope.testing.example_sharpness import make_small_sharpness
from batchscope.testing.examples import make_settings
from batchscope.testing.store_advice import make_advice_data

from .conftest import Here, only_study


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


@pytest.mark.parametrize("named", ["here", "elsewhere", "none"])
def test_show_of_a_scaling_hands_it_over_with_the_study_that_it_names(
    here: Here, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store("batchscope.db") as store:
        study = store.save_study(make_settings())
        data = make_scaling_data(study_id={"here": study, "elsewhere": "0123456789ab", "none": None}[named])
        scaling_id = store.save_scaling(data)
        beside = store.study_data(study) if named == "here" else None
    answered = dataclasses.replace(data, study_id=study if named == "here" else None)  # none else has a tuned policy
    monkeypatch.setattr("batchscope.verbs.report.analyse_scaling", lambda *given: [given == (answered, beside)])
    monkeypatch.setattr("batchscope.report.scaling_words.worded", lambda result: [*result, "worded"])
    monkeypatch.setattr("batchscope.analysis.scaling_answer.scaling_to_json", lambda result: {"answer": result})
    monkeypatch.setattr(
        "batchscope.report.scaling_terminal.print_scaling", lambda result, console: console.print(*result)
    )
    assert here("show", scaling_id[:11]).out == "True worded\n"
    assert json.loads(here("show", scaling_id, "--json").out) == {"answer": [True, "worded"]}


def test_the_answer_of_a_scaling_is_shown_and_drawn(here: Here, scaling_id: str, tmp_path: Path) -> None:
    shown = json.loads(here("show", scaling_id, "--json").out)
    assert (shown["task"], shown["fingerprint"], shown["report"]) == ("a task", "f" * 16, None)
    assert shown["sentences"]
    assert "a task" in here("show", scaling_id).out
    beside, elsewhere = tmp_path / f"batchscope-a-task-scaling-{scaling_id[:8]}.html", tmp_path / "page.html"
    assert here("report", scaling_id[:11]).out == f"{beside}\n"
    assert here("report", scaling_id, "--report", str(elsewhere)).out == f"{elsewhere}\n"
    assert all("a task" in page.read_text() for page in (beside, elsewhere))


@pytest.mark.parametrize("named", ["here", "elsewhere", "none"])
def test_show_of_a_sharpness_hands_it_over_with_the_study_that_it_names(
    here: Here, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store("batchscope.db") as store:
        study = store.save_study(make_settings())
        store.finish_study(study)
        data = make_small_sharpness(study_id={"here": study, "elsewhere": "0123456789ab", "none": None}[named])
        sharpness_id = store.save_sharpness(data)
        beside = store.study_data(study) if named == "here" else None
    monkeypatch.setattr("batchscope.verbs.report.analyse_sharpness", lambda *given: [given == (data, beside)])
    monkeypatch.setattr("batchscope.report.flatness_words.worded", lambda result: [*result, "worded"])
    monkeypatch.setattr("batchscope.analysis.flatness.flatness_to_json", lambda result: {"answer": result})
    monkeypatch.setattr(
        "batchscope.report.flatness_terminal.print_flatness", lambda result, console: console.print(*result)
    )
    assert here("show", sharpness_id[:11]).out == "True worded\n"
    assert json.loads(here("show", sharpness_id, "--json").out) == {"answer": [True, "worded"]}


def test_the_answer_of_a_sharpness_is_shown_and_drawn(here: Here, sharpness_id: str, tmp_path: Path) -> None:
    shown = json.loads(here("show", sharpness_id, "--json").out)
    assert (shown["task"], shown["fingerprint"], shown["report"]) == ("a task", "f" * 16, None)
    assert shown["sentences"]
    assert "a task" in here("show", sharpness_id).out
    page = tmp_path / f"batchscope-a-task-sharpness-{sharpness_id[:8]}.html"
    assert here("report", sharpness_id[:11]).out == f"{page}\n"
    assert "a task" in page.read_text()


def test_the_answer_of_a_match_is_shown_and_drawn(here: Here, match_id: str, tmp_path: Path) -> None:
    shown = json.loads(here("show", match_id[:11], "--json").out)
    assert (shown["task"], shown["fingerprint"], shown["report"]) == ("a task", "f" * 16, None)
    assert shown["answer"].startswith("At batch size 512 (16x), linear scaling matches batch size 32")
    assert 'by_name("linear scaling")' in shown["configuration"]
    assert {row["remedy"]: row["verdict"] for row in shown["rows"] if row["batch_size"] == 512} == {
        "linear scaling": "matches",
        "none": "narrows",
        "LARS": "narrows",
    }
    assert all(row["why"] for row in shown["rows"])
    assert " ".join(here("show", match_id).out.split()).startswith("a task: which large batch trains as well")
    page = tmp_path / f"batchscope-a-task-match-{match_id[:8]}.html"
    assert here("report", match_id[:11]).out == f"{page}\n"
    assert "linear scaling" in page.read_text()


@pytest.mark.parametrize("command", ["show", "report"])
def test_a_match_without_a_baseline_is_one_sentence(here: Here, command: str) -> None:
    with open_store("batchscope.db") as store:
        match_id = store.save_match(make_small_match(runs=()))
    ended = here(command, match_id)
    assert (ended.code, ended.out) == (1, "")
    assert "expected a match with runs of its baseline, got none" in ended.err


def test_show_of_a_study_beside_a_profile(here: Here, profile_id: str) -> None:
    assert json.loads(here("show", only_study(), "--json").out)["rows"][0]["seeds"] == 1


@pytest.mark.parametrize("command", ["show", "export"])
def test_an_id_that_names_none_or_two_is_one_sentence(here: Here, command: str, profile_id: str) -> None:
    unknown = here(command, "zzz")
    assert (unknown.code, unknown.out) == (1, "")
    assert unknown.err.startswith(
        "batchscope: no study, profile, noise run, advice, scaling, sharpness or match in batchscope.db begins with "
        "'zzz': `batchscope list`"
    )
    both = here(command, "")
    assert (both.code, both.out) == (1, "")
    assert "1 study and 1 profile in batchscope.db begin with ''" in both.err
    assert f"give more of study {only_study()}, profile {profile_id}" in both.err

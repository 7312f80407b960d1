"""Does a study print one JSON object, and do the other commands tell the same of it afterwards?"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from batchscope.store.sqlite import open_store

from .conftest import ASKED, COMMAND, ROW_KEYS, SMALL, Here, Study, data_of

KEYS = {"rows", "claims", "critical_batch_size", "s_min", "report"}
CLAIM_KEYS = {"claim", "policy", "verdict", "effect"}
MEASURED_KEYS = {"estimate", "low", "high", "n", "censored", "interval"}


def test_json_is_one_object_with_the_keys_of_the_contract(study: Study) -> None:
    """And nothing else on stdout, though the task prints."""
    answer = study.answer
    assert answer.keys() >= KEYS
    assert [(r["policy"], r["batch_size"]) for r in answer["rows"]] == [
        ("held", 16),
        ("held", 64),
        ("tuned", 16),
        ("tuned", 64),
    ]
    for row in answer["rows"]:
        assert row.keys() >= ROW_KEYS
        for key in ROW_KEYS - {"batch_size", "policy", "learning_rate", "tuning_trials", "seeds", "reached"}:
            assert row[key].keys() == MEASURED_KEYS
    for claim in answer["claims"]:
        assert claim.keys() >= CLAIM_KEYS
        assert claim["verdict"] in ("holds", "does not hold", "not resolved")
    assert {(c["number"], c["policy"]) for c in answer["claims"]} == {
        *((n, p) for n in range(1, 7) for p in ("held", "tuned")),
        (7, "both"),
    }
    assert answer["s_min"] is None or answer["s_min"].keys() == MEASURED_KEYS
    assert Path(answer["report"]).read_text().startswith("<!doctype html>")
    assert "NaN" not in study.ended.out
    assert "Infinity" not in study.ended.out


def test_progress_is_on_stderr_a_line_a_trial(study: Study) -> None:
    lines = study.ended.err.splitlines()
    assert sum(bool(re.match(r"  \d+/\d+ B=\d+ lr=", line)) for line in lines) == study.answer["spent"]["trials"]
    assert "timing (2) ..." in lines
    assert "loading" in lines
    assert "from a program" in lines
    assert "Traceback" not in study.ended.err


def test_the_same_command_again_prints_the_same_for_nothing(
    study: Study, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another process than the first, which has nothing but the store."""
    monkeypatch.chdir(study.store.parent)
    started = time.monotonic()
    again = here("study", study.task, *ASKED, "--store", "a.db", "--json")
    assert (again.code, again.out) == (0, study.ended.out)
    assert "B=" not in again.err
    assert time.monotonic() - started < 60


def test_without_json_the_tables_are_printed(study: Study, here: Here) -> None:
    ended = here("show", study_id(study), "--store", str(study.store))
    assert ended.code == 0
    assert ended.err == ""
    assert "small: what batch size does, goal validation loss" in ended.out
    assert "tuned" in ended.out
    assert f"Spent: {study.answer['spent']['trials']} trials" in ended.out


def study_id(study: Study) -> str:
    with open_store(study.store, read_only=True) as store:
        return store.studies()[0].id


def test_list_show_export_and_report(study: Study, here: Here, tmp_path: Path) -> None:
    where = ("--store", str(study.store))
    listed = json.loads(here("list", *where, "--json").out)["studies"]
    assert [s["task"] for s in listed] == ["small"]
    assert listed[0]["trials"] == listed[0]["finished_trials"] == study.answer["spent"]["trials"]
    assert "finished" in here("list", *where).out
    short = listed[0]["id"][:5]
    shown = json.loads(here("show", short, *where, "--json").out)
    assert {k: v for k, v in shown.items() if k not in ("report", "notes")} == {
        k: v for k, v in study.answer.items() if k not in ("report", "notes")
    }
    page = tmp_path / "page.html"
    assert here("report", short, *where, "--report", str(page)).out == f"{page}\n"
    assert json.loads(here("report", short, *where, "--report", str(page), "--json").out) == {"report": str(page)}
    rows = list(csv.DictReader(io.StringIO(here("export", short, *where).out)))
    data = data_of(study.store)
    trials = [t for role in ("reference", "held", "tuning", "tuned") for t in getattr(data, role)]
    assert len(rows) == sum(6 * len(t.result.trace) for t in trials)  # two metrics twice, distance, update norm
    held = [r for r in rows if (r["role"], r["part"], r["metric"]) == ("held", "validation", "loss")]
    assert [float(r["value"]) for r in held] == [e.validation["loss"] for t in data.held for e in t.result.trace]
    records = json.loads(here("export", short, *where, "--json").out)
    assert len(records["tuned"]) == len(data.tuned)
    assert records["held"][0]["result"]["trace"][0]["update_norm"] is None


def test_dry_run_says_what_would_run_and_runs_nothing(here: Here, tmp_path: Path) -> None:
    ended = here("study", str(SMALL), *ASKED, "--dry-run")
    assert ended.code == 0
    assert "batch sizes 16, 64; 1 seeds; held and tuned" in ended.out
    plan = json.loads(here("study", str(SMALL), *ASKED, "--dry-run", "--json").out)
    assert plan["trials"] == {"held": 2, "tuning": 10, "tuned": 2}
    assert {"examples", "reference_runs", "seconds", "bytes"} == plan["at_most"].keys()
    kept = here("study", str(SMALL), *ASKED, "--keep-weights", "--dry-run")
    assert "The weights of 4 trials are kept" in kept.out
    assert "are kept" not in ended.out
    assert not (tmp_path / "batchscope.db").exists()


def test_a_study_with_nothing_measured_yet_can_be_shown(here: Here, study: Study, tmp_path: Path) -> None:
    with open_store(tmp_path / "new.db") as store:
        new = store.save_study(data_of(study.store).settings)
    assert json.loads(here("show", new, "--store", "new.db", "--json").out)["rows"][0]["seeds"] == 0
    assert here("report", new, "--store", "new.db").code == 0
    assert "unfinished" in here("list", "--store", "new.db").out


def test_a_name_that_the_terminal_cannot_show_is_shown_escaped(study: Study, tmp_path: Path) -> None:
    settings = data_of(study.store).settings
    with open_store(tmp_path / "a.db") as store:
        store.save_study(dataclasses.replace(settings, task="sn\N{SNOWMAN}w"))
    ended = subprocess.run(
        [COMMAND, "list", "--store", "a.db"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "sn\\u2603w" in ended.stdout


def test_a_reader_that_goes_away_is_no_error(study: Study) -> None:
    with subprocess.Popen(
        [COMMAND, "export", study_id(study), "--store", str(study.store)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as command:
        assert command.stdout is not None
        assert command.stderr is not None
        command.stdout.read(10)
        command.stdout.close()
        assert command.stderr.read() == b""
        assert command.wait(30) == 0

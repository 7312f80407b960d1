"""Does `batchscope noise` follow a run in a worker, print one JSON object, and say what it would cost?"""

from __future__ import annotations

import json
from pathlib import Path

from .conftest import SMALL, Here


def test_a_dry_run_stores_nothing(here: Here, tmp_path: Path) -> None:
    ended = here("noise", str(SMALL), "--dry-run", "--json")
    plan = json.loads(ended.out)
    assert (ended.code, plan["checkpoints"]) == (0, 3)
    assert not (tmp_path / "batchscope.db").exists()
    assert "gradients measured every" in here("noise", str(SMALL), "--dry-run").out


def test_one_json_object_and_the_same_answer_from_the_store(here: Here) -> None:
    ended = here("noise", str(SMALL), "--json", "--no-report", "--checkpoints", "0")
    assert ended.code == 0, ended.err
    answer = json.loads(ended.out)
    assert set(answer["run_average"]["b_simple"]) == {"estimate", "low", "high", "n", "censored", "interval"}
    assert "following the reference run" in ended.err
    again = here("noise", str(SMALL), "--json", "--no-report", "--checkpoints", "0")
    assert json.loads(again.out) == answer
    assert "following" not in again.err
    listed = json.loads(here("list", "--json").out)
    assert len(listed["noise_runs"]) == 1


def test_several_devices_are_refused(here: Here) -> None:
    ended = here("noise", str(SMALL), "--devices", "2")
    assert (ended.code, ended.out) == (1, "")
    assert "expected 1 device, got 2: a run's gradient noise is measured on one device" in ended.err


def test_a_bad_option_is_one_sentence(here: Here) -> None:
    ended = here("noise", str(SMALL), "--budget", "-1")
    assert (ended.code, ended.out) == (2, "")
    assert "expected a budget in reference runs above 0, got -1.0: write --budget 1" in ended.err

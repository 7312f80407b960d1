"""Does `batchscope profile` say what it would do, read sizes in bytes, and show a stored profile again?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from batchscope.cli.options import size_in_bytes
from batchscope.errors import UsageError
from batchscope.store.sqlite import open_store
from batchscope.testing.example_profiles import make_profile

from .conftest import SMALL, Here


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("1073741824", 2**30),
        ("2GiB", 2**31),
        ("2 gib", 2**31),
        ("1.5G", 3 * 2**29),
        ("500MB", 500_000_000),
        ("500M", 500 * 2**20),
        ("12b", 12),
        ("3TiB", 3 * 2**40),
    ],
)
def test_sizes_in_bytes(text: str | None, expected: int | None) -> None:
    assert size_in_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "-1", "2 pounds", "1e9", "2GiBs"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected --memory-limit as a number of bytes"):
        size_in_bytes(text)


def test_several_devices_are_refused(here: Here) -> None:
    ended = here("profile", str(SMALL), "--devices", "2")
    assert ended.code == 1
    assert "expected 1 device, got 2: a profile is of one device; batchscope scale times steps on several" in ended.err


def test_a_dry_run_trains_to_no_goal_and_stores_nothing(here: Here, tmp_path: Path) -> None:
    ended = here("profile", str(SMALL), "--dry-run", "--json")
    plan = json.loads(ended.out)
    assert (ended.code, plan["batch_sizes"], plan["probes"]) == (0, [8, 16, 32, 64, 128, 256], 6)
    assert plan["at_most"]["seconds"] > 0
    assert not (tmp_path / "batchscope.db").exists()
    assert "micro-batch sizes (8 to 256" in here("profile", str(SMALL), "--dry-run").out


def test_a_stored_profile_is_shown_and_drawn_without_a_task(here: Here, tmp_path: Path) -> None:
    with open_store(tmp_path / "a.db") as store:
        found = store.save_profile(make_profile())
    shown = here("show", found[:6], "--store", "a.db")
    assert (shown.code, shown.err) == (0, "")
    assert "seconds and bytes against batch size" in shown.out
    assert json.loads(here("show", found, "--store", "a.db", "--json").out)["rows"]
    drawn = here("report", found, "--store", "a.db")
    assert drawn.code == 0
    assert Path(drawn.out.strip()).read_text().startswith("<!doctype html>")

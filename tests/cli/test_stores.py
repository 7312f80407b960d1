"""Is a store that is missing, foreign, newer, full or read-only named in one sentence, and left as it is?"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest

from batchscope.store.sqlite import open_store
from batchscope.testing.examples import bits, fill

from .conftest import ASKED, SMALL, Here, data_of, sentence


def test_a_store_that_is_not_ours_is_left_alone(here: Here, tmp_path: Path) -> None:
    foreign = tmp_path / "notes.txt"
    foreign.write_text("somebody's notes\n" * 100)
    for arguments in (["study", str(SMALL), *ASKED], ["list"], ["show", "a"], ["export", "a"], ["report", "a"]):
        sentence(here(*arguments, "--store", str(foreign)), 1, "notes.txt is not a Batchscope store", "--store")
    assert foreign.read_text() == "somebody's notes\n" * 100


def test_a_store_of_a_newer_version_is_left_alone(here: Here, tmp_path: Path) -> None:
    newer = tmp_path / "newer.db"
    with open_store(newer) as store:
        fill(store)
    with sqlite3.connect(newer) as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    content = newer.read_bytes()
    sentence(here("study", str(SMALL), *ASKED, "--store", "newer.db"), 1, "version 99", "upgrade Batchscope")
    assert newer.read_bytes() == content


@pytest.mark.parametrize(
    ("store", "parts"),
    [
        (".", ["is a folder", "batchscope.db"]),
        ("no/such/folder/a.db", ["the folder no/such/folder does not exist", "create it"]),
        ("missing.db", ["there is no store at missing.db", "run a study first"]),
    ],
)
def test_a_store_that_is_not_there(here: Here, store: str, parts: list[str]) -> None:
    command = ["list"] if "missing" in store else ["study", str(SMALL), *ASKED]
    sentence(here(*command, "--store", store), 1, *parts)


def test_an_unknown_study_is_one_sentence(here: Here) -> None:
    with open_store("batchscope.db") as store:
        fill(store)
    for command in ("show", "export", "report"):
        sentence(here(command, "zzz"), 1, "no study", "'zzz'", "batchscope list")


@pytest.fixture
def small_disk(tmp_path: Path) -> Generator[Path]:
    """A disk of its own, of 600 kB; `mount -o remount` changes it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or mount("-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)) != 0:
        pytest.skip("needs the right to mount a small file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def mount(*arguments: str) -> int:
    return subprocess.run(["mount", *arguments], capture_output=True).returncode


@pytest.mark.usefixtures("one_core")
def test_a_full_disk_and_a_read_only_one_lose_nothing(here: Here, small_disk: Path) -> None:
    """Full in the middle of a study; read-only after that; then room again, and the study goes on where it stopped."""
    ask = ("study", str(SMALL), "--batch-sizes", "8,16,64", "--policy", "held", "--seeds", "4", "--no-report")
    store = small_disk / "a.db"
    ended = here(*ask, "--store", str(store))
    sentence(ended, 1, "full", "free")
    mount("-o", "remount,ro", str(small_disk))
    sentence(here(*ask, "--store", str(store)), 1, "read-only")
    mount("-o", "remount,rw,size=20m", str(small_disk))
    kept = data_of(store).held
    assert 0 < len(kept) < 12
    again = here(*ask, "--store", str(store), "--json")
    assert again.code == 0
    assert [row["seeds"] for row in json.loads(again.out)["rows"]] == [4, 4, 4]
    now = {record.spec: record for record in data_of(store).held}
    assert bits([now[record.spec] for record in kept]) == bits(kept)
    assert len(re.findall(r"  \d+/12 B=", again.err)) == 12 - len(kept)

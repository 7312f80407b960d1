"""Which files are opened as stores, and what do other files, bad disks and older versions get to hear?"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import sqlite3
import stat
import subprocess
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from batchscope.errors import StoreError
from batchscope.store import Owner, SqliteStore, Store, open_store
from batchscope.store import connection as opening
from batchscope.testing.examples import CHOICES, CONDITIONS, TIMING, bits, fill, make_result, make_settings, make_spec

VERSION_1 = Path(__file__).parent / "assets" / "version-1.sqlite"  # written by layout version 1; never regenerated
NOBODY = 65534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "study.db"


def fill_file(path: Path, trials: int = 3, finished: int = 1, evaluations: int = 3) -> list[int]:
    """A store file with one study; returns the ids of its trials."""
    with open_store(path) as store:
        return fill(store, trials, finished, evaluations)


def held(path: Path) -> list[Any]:
    """What the only study holds, bit for bit."""
    with open_store(path, read_only=True) as store:
        return [bits(record) for record in store.study_data(store.studies()[0].id).held]


# --- other files ---


@pytest.mark.parametrize("content", [b"x", b"hello, this is a text\n" * 100, b"SQLite format 3\x00 and then nothing"])
def test_a_file_that_is_not_sqlite_is_refused_untouched(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    for read_only in (False, True):
        with pytest.raises(StoreError, match="is not a Batchscope store"):
            open_store(path, read_only=read_only)
    assert path.read_bytes() == content
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("mark", ["CREATE TABLE t (x)", "PRAGMA application_id=7", "PRAGMA user_version=1"])
def test_somebody_elses_database_is_refused_untouched(path: Path, mark: str) -> None:
    with sqlite3.connect(path) as db:
        db.execute(mark)
    db.close()
    content = path.read_bytes()
    with pytest.raises(StoreError, match="is not a Batchscope store"):
        open_store(path)
    assert path.read_bytes() == content


def test_a_newer_store_is_refused_naming_both_versions(path: Path) -> None:
    fill_file(path)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=7")
    db.close()
    for read_only in (False, True):
        with pytest.raises(StoreError, match=rf"version 7 .* up to {opening.VERSION}: upgrade Batchscope"):
            open_store(path, read_only=read_only)


def test_paths_that_cannot_be_a_store_are_one_sentence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place, said in (
        (tmp_path, "is a folder"),
        (tmp_path / "pipe", "is not a regular file"),
        (tmp_path / "missing" / "study.db", "folder .*missing does not exist"),
        (tmp_path / ("x" * 300), "cannot be used as a store"),
    ):
        with pytest.raises(StoreError, match=said):
            open_store(place)
    with pytest.raises(StoreError, match="there is no store at"):
        open_store(tmp_path / "study.db", read_only=True)
    assert os.listdir(tmp_path) == ["pipe"]


def test_an_empty_file_is_a_new_store(path: Path) -> None:
    path.touch()
    with open_store(path, read_only=True) as store:
        assert store.studies() == ()
    fill_file(path)
    assert len(held(path)) == 1


def test_a_path_may_hold_anything_and_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "<script>alert(1)</script>".replace("/", "") + "?mode=memory#%20 \N{SNOWMAN}.db"
    fill_file(Path(name))
    assert (tmp_path / name).stat().st_size > 0
    assert len(held(Path(name))) == 1


def test_a_damaged_store_says_so(path: Path) -> None:
    fill_file(path, trials=50, finished=50, evaluations=50)
    content = bytearray(path.read_bytes())
    content[8192:] = os.urandom(len(content) - 8192)
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"is damaged|is not a Batchscope store"):
        held(path)


# --- bad disks ---


@contextmanager
def unprivileged() -> Generator[None]:
    """As a user whom file permissions stop (they do not stop root)."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def locked() -> Iterator[Path]:
    """A folder that others may read; a test takes away the right to write with `lock`."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def lock(folder: Path) -> None:
    """Nothing in it may be written any more, nor anything added."""
    for file in folder.iterdir():
        file.chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
    folder.chmod(0o555)


def test_a_read_only_store_is_refused_for_writing_and_read_when_asked(locked: Path) -> None:
    path = locked / "study.db"
    fill_file(path)
    before = held(path)
    for file in locked.glob("study.db-*"):
        file.unlink()  # what a copy on a read-only disk looks like
    lock(locked)
    with unprivileged():
        with pytest.raises(StoreError, match="read-only: make both writable"):
            open_store(path)
        with pytest.raises(StoreError, match="cannot be created: make the folder"):
            open_store(locked / "new.db")
        assert held(path) == before
        with open_store(path, read_only=True) as store, pytest.raises(StoreError, match="opened to be read only"):
            store.save_study(make_settings(workers=9))
    assert os.listdir(locked) == ["study.db"]


def test_a_read_only_file_in_a_writable_folder(locked: Path) -> None:
    path = locked / "study.db"
    fill_file(path)
    before = held(path)
    path.chmod(0o444)
    locked.chmod(0o777)
    with unprivileged():
        with pytest.raises(StoreError, match="read-only: make both writable"):
            open_store(path)
        assert held(path) == before
    path.chmod(0)
    with unprivileged(), pytest.raises(StoreError, match="may not be read"):
        open_store(path)


def test_results_in_a_wal_are_not_passed_over(locked: Path) -> None:
    """A store copied while a process was writing: with its WAL nothing is lost, and no reader pretends otherwise."""
    live, path = locked / "live.db", locked / "study.db"
    fill_file(live)
    with open_store(live) as store:
        store.add_note(store.studies()[0].id, "only in the WAL")
        for suffix in ("", "-wal"):
            shutil.copy(f"{live}{suffix}", f"{path}{suffix}")
    lock(locked)
    with unprivileged(), pytest.raises(StoreError, match=r"last results are still in study\.db-wal"):
        open_store(path, read_only=True)
    locked.chmod(0o755)
    path.chmod(0o644)
    with open_store(path) as store:
        assert store.notes(store.studies()[0].id) == ("only in the WAL",)


def test_a_full_disk_is_one_sentence_and_loses_nothing(path: Path) -> None:
    ids = fill_file(path, trials=200)
    with open_store(path) as store:
        (pages,) = store._db.execute("PRAGMA page_count").fetchone()
        store._db.execute(f"PRAGMA max_page_count={pages + 40}")
        stored = finish_until_full(store, ids)
        store._db.execute("PRAGMA max_page_count=100000")
        store.finish(ids[stored], Owner.here(), make_result(stored, 50))  # the same lease, once there is room
    assert_whole(path, ids[: stored + 1])


def test_a_full_tmpfs_is_one_sentence_and_loses_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk; max_page_count stands in for it above")
    try:
        ids = fill_file(disk / "study.db", trials=200)
        with open_store(disk / "study.db") as store:
            stored = finish_until_full(store, ids)
        assert_whole(disk / "study.db", ids[:stored])
        with pytest.raises(StoreError, match="is full"):
            fill_disk_and_open(disk)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def fill_disk_and_open(disk: Path) -> None:
    """A new store on a disk without room for its first page."""
    with (disk / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while ballast.write(b"x" * 4096):
            pass
    open_store(disk / "new.db")


def finish_until_full(store: SqliteStore, ids: list[int]) -> int:
    """Finish trials from the second on until the disk is full; returns how many are finished then."""
    with pytest.raises(StoreError, match="is full: nothing stored was lost"):
        finish_all(store, ids)
    stored = [store.trial(trial) is not None for trial in ids].index(False)
    assert 1 < stored < len(ids) - 1
    return stored


def finish_all(store: Store, ids: list[int]) -> None:
    """Run every trial but the first."""
    for seed, trial in list(enumerate(ids))[1:]:
        store.lease(trial, Owner.here(), 60)
        store.finish(trial, Owner.here(), make_result(seed, 50))


def assert_whole(path: Path, ids: list[int]) -> None:
    """The first trial has 3 evaluations, the others 50, all with their bits; and nothing else is finished."""
    with open_store(path) as store:
        assert all(store.trial(trial) is not None for trial in ids)
    expected = [bits(make_result(seed, 50 if seed else 3)) for seed in range(len(ids))]
    assert [record["result"] for record in held(path)] == expected


# --- older versions ---


def layout(path: Path) -> set[tuple[str, str]]:
    """Every table, index and view with its definition."""
    with sqlite3.connect(path) as db:
        found = set(db.execute("SELECT name, coalesce(sql, '') FROM sqlite_master"))
    db.close()
    return found


def assert_version_1_is_all_there(store: Store) -> None:
    """What the frozen file holds, written out."""
    (summary,) = store.studies()
    assert (summary.id, summary.task, summary.trials, summary.finished_trials) == ("d60d3d9f5c14", "an old task", 2, 1)
    data = store.study_data(summary.id)
    assert data.settings == make_settings(task="an old task", fingerprint="0123456789abcdef")
    assert (data.timing, data.choices, data.notes) == (TIMING, CHOICES, ("an old note",))
    assert (data.reference_examples, data.reference_reached) == (2048.0, True)
    (record,) = data.held
    assert (record.spec, record.conditions, record.attempts) == (make_spec(0), CONDITIONS, 2)
    assert [e.validation["loss"] for e in record.result.trace] == [1.1, 0.55, 1.1 / 3]
    assert math.isnan(record.result.trace[0].update_norm)
    done, lost = store.trial_ids(summary.id, "held")
    assert [a.how for a in store.attempts(done)] == ["died", "finished"]
    assert [a.how for a in store.attempts(lost)] == [None]


def test_version_1_is_upgraded_with_all_it_holds(path: Path, tmp_path: Path) -> None:
    shutil.copy(VERSION_1, path)
    with open_store(path) as store:
        assert_version_1_is_all_there(store)
        (before,) = store.other_fingerprints("an old task", "new")
        assert (before.fingerprint, before.components, before.trials) == ("0123456789abcdef", {}, 1)
        assert store.lease(store.trial_ids(store.studies()[0].id, "held")[1], Owner.here(), 60).attempt == 2
    fill_file(tmp_path / "new.db")
    assert layout(path) == layout(tmp_path / "new.db")


def test_version_1_can_be_read_without_being_changed(path: Path) -> None:
    shutil.copy(VERSION_1, path)
    with open_store(path, read_only=True) as store:
        assert_version_1_is_all_there(store)
        with pytest.raises(StoreError, match="opened to be read only"):
            store.add_note("d60d3d9f5c14", "new")
    assert path.read_bytes() == VERSION_1.read_bytes()


def test_an_upgrade_that_breaks_off_leaves_the_old_version(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(VERSION_1, path)
    before = layout(path)
    broken = path.with_name("upgrade.sql")
    broken.write_text("CREATE TABLE half (x);\nINSERT INTO nowhere VALUES (1);\n")
    with monkeypatch.context() as patch:
        patch.setitem(opening.UPGRADES, 1, broken)
        with pytest.raises(StoreError, match="nowhere"):
            open_store(path)
    assert layout(path) == before
    with open_store(path) as store:
        assert_version_1_is_all_there(store)

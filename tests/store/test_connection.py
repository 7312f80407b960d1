"""Which files are opened as stores, and what do other files and bad disks get to hear?"""

from __future__ import annotations

import contextlib
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
from batchscope.testing.examples import bits, fill, make_result, make_settings

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
    newer = opening.VERSION + 1
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version={newer}")
    db.close()
    for read_only in (False, True):
        with pytest.raises(StoreError, match=rf"version {newer} .* up to {opening.VERSION}: upgrade Batchscope"):
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


def test_a_file_that_another_process_is_laying_out_is_not_taken_for_somebody_elses(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interleaved(sqlite3.Connection):
        """Another process lays the file out after the first thing that is read of it, where it is let."""

        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            if sql == "PRAGMA user_version":
                with contextlib.suppress(StoreError):
                    open_store(path).close()
            return super().execute(sql, *parameters)

    monkeypatch.setattr(opening, "BUSY_SECONDS", 0.05)
    db = sqlite3.connect(path, isolation_level=None, factory=Interleaved)
    assert opening._check_version(db, path) in (0, opening.VERSION)
    db.close()


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

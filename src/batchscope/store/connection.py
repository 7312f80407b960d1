"""May this file be used as a store, and what does SQLite's complaint mean in one sentence?

A store file carries our number in SQLite's `application_id` and the version of its layout in `user_version`. Opening
never changes a file before both were read:

    nothing there, or 0 bytes     a new store is laid out
    not SQLite, or another id     refused
    a newer version               refused, naming both
    an older version              upgraded in one transaction (opened read-only: a copy in memory is upgraded)

The journal is a WAL with synchronous=NORMAL: a killed process loses nothing, a power cut can lose the last commits but
never half of one. WAL needs a local disk, not a network file system.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from batchscope.errors import StoreError

APPLICATION_ID = 0x42534350  # "BSCP"
VERSION = 9
BUSY_SECONDS = 30.0  # a writer holds the file for milliseconds; a guess with room for a stalled disk
FULL_BELOW_BYTES = 256 * 1024  # a failed write with less room than this is called a full disk; a guess
SQLITE_HEADER_BYTES = 100  # sqlite.org/fileformat.html, section 1.3
FOLDER = Path(__file__).parent
# UPGRADES[v] turns layout v into v + 1. Frozen: what a released version wrote does not change.
UPGRADES = {old: FOLDER / f"upgrade_{old}_to_{old + 1}.sql" for old in range(1, VERSION)}


def connect(path: Path, *, read_only: bool) -> sqlite3.Connection:
    """An open, checked and current connection. Raises `StoreError` for a file that cannot be a store."""
    with translated(path):
        _check_path(path, read_only)
        if read_only:
            return _connect_to_read(path)
        deadline = time.monotonic() + BUSY_SECONDS
        while True:  # SQLite does not wait for another process that is switching a new file to WAL
            db = _sqlite(path, "mode=rwc")
            try:
                return _prepared(db, path)
            except BaseException as error:
                db.close()
                if not _is(error, "SQLITE_BUSY") or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)


def _check_path(path: Path, read_only: bool) -> None:
    if path.is_dir():
        raise StoreError(f"{path} is a folder: give the path of a file in it, such as {path / 'batchscope.db'}")
    if path.exists() and not path.is_file():
        raise StoreError(f"{path} is not a regular file: give the path of a Batchscope store")
    if path.exists() and 0 < path.stat().st_size < SQLITE_HEADER_BYTES:
        raise StoreError(_foreign(path))  # SQLite would take a file of one byte for an empty one
    if read_only and not path.exists():
        raise StoreError(f"there is no store at {path}: run a study first, or give --store the path of one")
    if not path.parent.is_dir():
        raise StoreError(f"the folder {path.parent} does not exist: create it, or give --store another path")


def _sqlite(path: Path, options: str) -> sqlite3.Connection:
    """A connection without hidden transactions: each BEGIN is ours."""
    uri = f"{path.absolute().as_uri()}?{options}"
    return sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)


def _prepared(db: sqlite3.Connection, path: Path) -> sqlite3.Connection:
    """Lay out a new file or upgrade an old one. BEGIN IMMEDIATE also finds out now whether the file can be written."""
    _check_version(db, path)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=NORMAL")
    db.execute("PRAGMA foreign_keys=ON")
    db.execute("BEGIN IMMEDIATE")
    try:
        version = _check_version(db, path)  # again: another process may have been first
        if version == 0:
            _lay_out(db)
        else:
            _upgrade(db, version)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    return db


def _connect_to_read(path: Path) -> sqlite3.Connection:
    """A connection that cannot write.

    A WAL file in a folder that cannot be written opens only as `immutable`. That skips the WAL, so it is right only
    where there is none; a WAL left by a killed process holds results, and is not passed over in silence.
    """
    db = _sqlite(path, "mode=ro")
    try:
        version = _check_version(db, path)
    except sqlite3.OperationalError as error:
        db.close()
        if not (_is(error, "SQLITE_CANTOPEN") or _is(error, "SQLITE_READONLY")) or not _is_readable(path):
            raise
        wal = path.with_name(path.name + "-wal")
        if wal.exists() and wal.stat().st_size > 0:
            raise StoreError(
                f"{path} was not closed properly and its last results are still in {wal.name}, which cannot be merged "
                "in a read-only folder: copy both files into a folder that you can write, and open the copy"
            ) from error
        db = _sqlite(path, "immutable=1")
        version = _check_version(db, path)
    except BaseException:
        db.close()
        raise
    if version < VERSION:
        memory = sqlite3.connect(":memory:", isolation_level=None)
        db.backup(memory)
        db.close()
        _lay_out(memory) if version == 0 else _upgrade(memory, version)
        db = memory
    db.execute("PRAGMA query_only=ON")
    return db


def _check_version(db: sqlite3.Connection, path: Path) -> int:
    """The version of the layout, 0 for a file with nothing in it. Raises for a file that is not ours to touch."""
    alone = not db.in_transaction
    if alone:
        db.execute("BEGIN")  # one snapshot: another process may be laying this file out
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (objects,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if alone:
        db.execute("COMMIT")
    if application == version == objects == 0:
        return 0
    if application != APPLICATION_ID:
        raise StoreError(_foreign(path))
    if version > VERSION:
        raise StoreError(
            f"{path} has layout version {version} and this Batchscope reads up to {VERSION}: upgrade Batchscope, "
            "or give --store another path"
        )
    if version < 1:
        raise StoreError(f"{path} has layout version {version}, which no Batchscope has written: the file is damaged")
    return version


def _foreign(path: Path) -> str:
    return f"{path} is not a Batchscope store: nothing in it was changed; give --store another path"


def _lay_out(db: sqlite3.Connection) -> None:
    _run_script(db, FOLDER / "schema.sql")
    db.execute(f"PRAGMA application_id={APPLICATION_ID}")
    db.execute(f"PRAGMA user_version={VERSION}")


def _upgrade(db: sqlite3.Connection, version: int) -> None:
    for old in range(version, VERSION):
        _run_script(db, UPGRADES[old])
    db.execute(f"PRAGMA user_version={VERSION}")


def _run_script(db: sqlite3.Connection, script: Path) -> None:
    """Statement by statement, inside the caller's transaction (`executescript` would commit it first)."""
    statement = ""
    for line in script.read_text(encoding="utf-8").splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            db.execute(statement)
            statement = ""


# --- the one place where complaints are translated ---


def _is(error: BaseException, name: str) -> bool:
    """Whether SQLite gave this error, in any of its extended forms."""
    return str(getattr(error, "sqlite_errorname", "")).startswith(name)


@contextmanager
def translated(path: Path) -> Generator[None]:
    """Turn every complaint of SQLite or the file system into one sentence about this file."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise StoreError(_sentence(error, path)) from error


def _sentence(error: sqlite3.Error | OSError, path: Path) -> str:
    folder = path.parent
    if _is(error, "SQLITE_NOTADB"):
        return _foreign(path)
    if _is(error, "SQLITE_FULL") or (_is(error, "SQLITE_IOERR") and _is_full(folder)):
        return f"the disk that holds {path} is full: nothing stored was lost; free some space and run the command again"
    if _is(error, "SQLITE_READONLY") or (_is(error, "SQLITE_CANTOPEN") and path.exists()):
        if not _is_readable(path):
            return f"{path} may not be read by this user: change its permissions, or give --store another path"
        return f"{path} or its folder is read-only: make both writable, or copy the file to a folder that is"
    if _is(error, "SQLITE_CANTOPEN"):
        return f"{path} cannot be created: make the folder {folder} writable, or give --store another path"
    if _is(error, "SQLITE_BUSY") or _is(error, "SQLITE_LOCKED"):
        return f"another process kept {path} locked for {BUSY_SECONDS:.0f} s: wait for it to end and try again"
    if _is(error, "SQLITE_CORRUPT"):
        return f"{path} is damaged ({error}): restore a copy, or save what is left with `sqlite3 {path} .recover`"
    if isinstance(error, OSError):
        return f"{path} cannot be used as a store ({error.strerror or error}): give --store another path"
    return f"SQLite cannot use {path}: {error}"


def _is_readable(path: Path) -> bool:
    return os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids)


def _is_full(folder: Path) -> bool:
    """Whether the disk has no room left: on a full disk some of SQLite's writes report a mere I/O error."""
    try:
        return shutil.disk_usage(folder).free < FULL_BELOW_BYTES
    except OSError:
        return False

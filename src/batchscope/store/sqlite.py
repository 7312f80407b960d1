"""How do trials, their leases and their curves live in one SQLite file? The contract is in `base.py`.

Read `lease` and `finish` first: they carry the concurrency. The file's transactions and the tables of studies are in
`sqlite_studies.py`, what is read whole in `sqlite_documents.py`, opening and the translation of errors in
`connection.py`, the tables themselves in `schema.sql`.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Sequence

from batchscope.errors import StoreError
from batchscope.records import (
    ENDINGS,
    OUTCOMES,
    Conditions,
    TrialRecord,
    TrialResult,
    TrialSpec,
    from_plain,
    to_plain,
)
from batchscope.store import exact
from batchscope.store.base import ROLES, UNFINISHED_WAYS
from batchscope.store.owner import Owner
from batchscope.store.replies import Attempt, Lease
from batchscope.store.sqlite_documents import DocumentTables
from batchscope.store.sqlite_studies import digest, now

_RECORD_COLUMNS = "t.id, t.spec, t.result, t.conditions, t.attempts"
_LEASE_COLUMNS = "lease_owner, lease_pid, lease_host, lease_started"
_HELD_BY = "lease_owner = ? AND lease_pid = ? AND lease_host = ? AND lease_started = ?"
_NO_LEASE = "lease_owner = NULL, lease_pid = NULL, lease_host = NULL, lease_started = NULL, lease_expires_at = NULL"


def open_store(path: str | os.PathLike[str], *, read_only: bool = False) -> SqliteStore:
    """Open the store in this file, laying it out if it is new: `with open_store("batchscope.db") as store: ...`

    `read_only` never writes, so it also reads a store on a read-only disk. Raises `StoreError`, see `connection.py`.
    """
    return SqliteStore(path, read_only=read_only)


class SqliteStore(DocumentTables):
    """The store in one SQLite file."""

    # --- trials ---

    def add_trials(
        self, study_id: str | None, role: str, fingerprint: str, conditions: Conditions, specs: Sequence[TrialSpec]
    ) -> list[int]:
        if study_id is not None:
            _check_role(role)
        conditions_text = exact.to_text(conditions)
        conditions_key = digest(to_plain(conditions), 16)
        with self._write() as db:
            study = None if study_id is None else self.resolve(study_id)
            ids = []
            for spec in (from_plain(TrialSpec, to_plain(s)) for s in specs):  # a learning rate of 1 is one of 1.0
                key = (fingerprint, conditions_key, spec.key())
                db.execute(
                    "INSERT OR IGNORE INTO trials "
                    "(fingerprint, conditions_key, spec_key, spec, conditions, created_at) VALUES (?, ?, ?, ?, ?, ?)",
                    (*key, exact.to_text(spec), conditions_text, now()),
                )
                where = "fingerprint = ? AND conditions_key = ? AND spec_key = ?"
                (trial_id,) = db.execute(f"SELECT id FROM trials WHERE {where}", key).fetchone()
                ids.append(trial_id)
                if study is not None:
                    db.execute(
                        "INSERT OR IGNORE INTO study_trials "
                        "SELECT ?, ?, count(*), ? FROM study_trials WHERE study_id = ? AND role = ?",
                        (study, role, trial_id, study, role),
                    )
        return ids

    def trial_ids(self, study_id: str, role: str) -> tuple[int, ...]:
        _check_role(role)
        with self._read() as db:
            rows = db.execute(
                "SELECT trial_id FROM study_trials WHERE study_id = ? AND role = ? ORDER BY position",
                (self.resolve(study_id), role),
            ).fetchall()
        return tuple(trial_id for (trial_id,) in rows)

    def trial(self, trial_id: int) -> TrialRecord | None:
        with self._read() as db:
            row = db.execute(f"SELECT {_RECORD_COLUMNS} FROM trials t WHERE t.id = ?", (trial_id,)).fetchone()
            if row is None:
                raise self._no_trial(trial_id)
            if row[2] is None:
                return None
            return self._record(*row[:3], exact.from_text(Conditions, row[3]), row[4])

    def trials(self, study_id: str, role: str) -> tuple[TrialRecord, ...]:
        _check_role(role)
        with self._read() as db:
            rows = db.execute(
                f"SELECT {_RECORD_COLUMNS} FROM study_trials l JOIN trials t ON t.id = l.trial_id "
                "WHERE l.study_id = ? AND l.role = ? AND t.outcome IS NOT NULL ORDER BY l.position",
                (self.resolve(study_id), role),
            ).fetchall()
            conditions = {text: exact.from_text(Conditions, text) for text in {row[3] for row in rows}}
            return tuple(self._record(*row[:3], conditions[row[3]], row[4]) for row in rows)

    def _record(self, trial_id: int, spec: str, result: str, conditions: Conditions, attempts: int) -> TrialRecord:
        return TrialRecord(exact.from_text(TrialSpec, spec), self._result(trial_id, result), conditions, attempts)

    def _result(self, trial_id: int, text: str) -> TrialResult:
        rows = self._db.execute(
            "SELECT step, examples, train, validation, distance, update_norm FROM evaluations "
            "WHERE trial_id = ? ORDER BY k",
            (trial_id,),
        ).fetchall()
        return exact.result_from(text, rows)

    def _no_trial(self, trial_id: int) -> StoreError:
        return StoreError(f"no trial in {self.path} has the id {trial_id!r}: ids come from `add_trials`")

    # --- leases and attempts ---

    def lease(self, trial_id: int, owner: Owner, seconds: float) -> Lease:
        with self._write() as db:
            row = db.execute(
                f"SELECT outcome, attempts, lease_expires_at, {_LEASE_COLUMNS} FROM trials WHERE id = ?", (trial_id,)
            ).fetchone()
            if row is None:
                raise self._no_trial(trial_id)
            outcome, attempts, expires_at, *holder = row
            if outcome is not None:
                return Lease("done")
            if _claimed_by_another(db, owner):
                return Lease("busy")
            if holder[0] is not None:
                ended = _why_ended(Owner(*holder), expires_at, owner)
                if not ended:
                    return Lease("busy")
                _end_attempt(db, trial_id, "interrupted", ended)
            db.execute(
                "UPDATE trials SET attempts = ?, lease_owner = ?, lease_pid = ?, lease_host = ?, lease_started = ?, "
                "lease_expires_at = ? WHERE id = ?",
                (attempts + 1, *_columns(owner), time.time() + seconds, trial_id),
            )
            db.execute(
                "INSERT INTO attempts (trial_id, number, owner, started_at) VALUES (?, ?, ?, ?)",
                (trial_id, attempts + 1, str(owner), now()),
            )
            return Lease("leased", attempts + 1)

    def renew(self, trial_ids: Sequence[int], owner: Owner, seconds: float) -> tuple[int, ...]:
        with self._write() as db:
            return tuple(
                trial_id
                for trial_id in trial_ids
                if db.execute(
                    f"UPDATE trials SET lease_expires_at = ? WHERE id = ? AND {_HELD_BY}",
                    (time.time() + seconds, trial_id, *_columns(owner)),
                ).rowcount
            )

    def release(self, trial_id: int, owner: Owner, how: str, reason: str = "") -> None:
        if how not in UNFINISHED_WAYS:
            raise ValueError(f"an attempt is released as one of {UNFINISHED_WAYS}, got {how!r}")
        with self._write() as db:
            held = db.execute(
                f"UPDATE trials SET {_NO_LEASE} WHERE id = ? AND {_HELD_BY}", (trial_id, *_columns(owner))
            ).rowcount
            if held:
                _end_attempt(db, trial_id, how, reason)

    def finish(self, trial_id: int, owner: Owner, result: TrialResult) -> None:
        if result.outcome not in OUTCOMES or result.ended_by not in ENDINGS:
            raise ValueError(f"a result has an outcome of {OUTCOMES} and an ending of {ENDINGS}, got {result}")
        text, trace = exact.result_text(result), exact.trace_rows(result)
        with self._write() as db:
            stored = db.execute(
                f"UPDATE trials SET outcome = ?, result = ?, finished_at = ?, {_NO_LEASE} "
                f"WHERE id = ? AND outcome IS NULL AND {_HELD_BY}",
                (result.outcome, text, now(), trial_id, *_columns(owner)),
            ).rowcount
            if not stored:
                return self._refuse_unless_same(db, trial_id, result)
            db.executemany(
                "INSERT INTO evaluations VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [(trial_id, k, *row) for k, row in enumerate(trace)],
            )
            _end_attempt(db, trial_id, "finished", result.reason)

    def _refuse_unless_same(self, db: sqlite3.Connection, trial_id: int, result: TrialResult) -> None:
        row = db.execute("SELECT result FROM trials WHERE id = ?", (trial_id,)).fetchone()
        if row is None:
            raise self._no_trial(trial_id)
        if row[0] is None:
            raise StoreError(f"the lease on trial {trial_id} was lost before its result came: it is run again")
        if not exact.same_result(self._result(trial_id, row[0]), result):
            raise StoreError(f"trial {trial_id} has another result already: the first stays, this one is dropped")

    def claim_machine(self, owner: Owner, seconds: float) -> str:
        with self._write() as db:
            if _claimed_by_another(db, owner):
                return "busy"
            db.execute(
                "INSERT OR REPLACE INTO machine VALUES (1, ?, ?, ?, ?, ?)", (*_columns(owner), time.time() + seconds)
            )
            leases = db.execute(
                f"SELECT {_LEASE_COLUMNS}, lease_expires_at FROM trials WHERE lease_owner IS NOT NULL"
            ).fetchall()
            return (
                "shared"
                if any(_stops(Owner(*holder), expires_at, owner) for *holder, expires_at in leases)
                else "alone"
            )

    def free_machine(self, owner: Owner) -> None:
        with self._write() as db:
            db.execute("DELETE FROM machine WHERE owner = ? AND pid = ? AND host = ? AND started = ?", _columns(owner))

    def attempts(self, trial_id: int) -> tuple[Attempt, ...]:
        with self._read() as db:
            rows = db.execute(
                "SELECT number, owner, started_at, ended_at, how, reason FROM attempts "
                "WHERE trial_id = ? ORDER BY number",
                (trial_id,),
            ).fetchall()
        return tuple(Attempt(*row) for row in rows)


def _why_ended(holder: Owner, expires_at: float, asking: Owner) -> str:
    """Why a lease may be taken from its holder; empty while it may not."""
    if holder == asking:
        return "its owner began it anew"
    if holder.is_gone():
        return f"{holder} is gone"
    return f"the lease of {holder} ran out" if expires_at <= time.time() else ""


def _stops(holder: Owner, expires_at: float, asking: Owner) -> bool:
    """Whether what this holder holds keeps another owner waiting."""
    return not _why_ended(holder, expires_at, asking)


def _claimed_by_another(db: sqlite3.Connection, owner: Owner) -> bool:
    claim = db.execute("SELECT owner, pid, host, started, expires_at FROM machine").fetchone()
    return claim is not None and _stops(Owner(*claim[:4]), claim[4], owner)


def _end_attempt(db: sqlite3.Connection, trial_id: int, how: str, reason: str) -> None:
    db.execute(
        "UPDATE attempts SET ended_at = ?, how = ?, reason = ? WHERE trial_id = ? AND ended_at IS NULL",
        (now(), how, exact.clean(reason), trial_id),
    )


def _columns(owner: Owner) -> tuple[str, int, str, str]:
    return owner.name, owner.pid, owner.host, owner.started


def _check_role(role: str) -> None:
    if role not in ROLES:
        raise ValueError(f"a trial belongs to a study as one of {ROLES}, got {role!r}")

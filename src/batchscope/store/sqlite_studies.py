"""How do tasks and studies live in the tables `tasks`, `studies` and `notes`? The contract is in `base.py`.

Every public method is one transaction, opened by `_read` or `_write`; BEGIN IMMEDIATE takes the file's one write lock
before anything is read, so that a decision made inside it cannot be overtaken. `sqlite_documents.py` adds the
profiles, noise runs, advices, scalings, sharpnesses, matches and parts, `sqlite.py` the trials.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from batchscope.errors import StoreError
from batchscope.records import StudyData, StudySettings, TimingPass, TunedChoice, from_plain, to_plain
from batchscope.store import exact
from batchscope.store.base import Store
from batchscope.store.connection import connect, translated
from batchscope.store.replies import SeenTask, StudySummary

# What has an id that users type, and the table it is kept in.
TABLES = {
    "study": "studies",
    "profile": "profiles",
    "noise run": "noise_runs",
    "advice": "advices",
    "scaling": "scalings",
    "sharpness": "sharpnesses",
    "match": "matches",
}


class StudyTables(Store):
    """The file, its transactions, and the half of the contract that concerns studies."""

    def __init__(self, path: str | os.PathLike[str], *, read_only: bool = False) -> None:
        self.path = Path(path)
        self.read_only = read_only
        self._db = connect(self.path, read_only=read_only)

    def close(self) -> None:
        with translated(self.path):
            self._db.close()

    @contextmanager
    def _transaction(self, begin: str) -> Generator[sqlite3.Connection]:
        with translated(self.path):
            if self._db.in_transaction:  # `study_data` reads several things from one snapshot
                yield self._db
                return
            self._db.execute(begin)
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _read(self) -> AbstractContextManager[sqlite3.Connection]:
        return self._transaction("BEGIN")

    def _write(self) -> AbstractContextManager[sqlite3.Connection]:
        if self.read_only:
            raise StoreError(f"{self.path} was opened to be read only: open it with read_only=False to write")
        return self._transaction("BEGIN IMMEDIATE")

    # --- tasks seen ---

    def remember_task(self, name: str, fingerprint: str, components: Mapping[str, str]) -> None:
        with self._write() as db:
            db.execute(
                "INSERT INTO tasks VALUES (?, ?, ?, ?) ON CONFLICT (name, fingerprint) DO UPDATE "
                "SET components = excluded.components, seen_at = excluded.seen_at",
                (exact.clean(name), fingerprint, exact.to_text(dict(components)), now()),
            )

    def other_fingerprints(self, name: str, fingerprint: str) -> tuple[SeenTask, ...]:
        with self._read() as db:
            rows = db.execute(
                "SELECT k.fingerprint, k.components, (SELECT count(*) FROM trials t "
                "WHERE t.fingerprint = k.fingerprint AND t.outcome IS NOT NULL) "
                "FROM tasks k WHERE k.name = ? AND k.fingerprint <> ? ORDER BY k.seen_at DESC, k.rowid DESC",
                (exact.clean(name), fingerprint),
            ).fetchall()
        return tuple(SeenTask(other, json.loads(components), trials) for other, components, trials in rows)

    # --- studies ---

    def save_study(self, settings: StudySettings) -> str:
        study_id, text = _study_key(settings)
        with self._write() as db:
            db.execute(
                "INSERT OR IGNORE INTO studies (id, task, fingerprint, settings, created_at) VALUES (?, ?, ?, ?, ?)",
                (study_id, exact.clean(settings.task), settings.fingerprint, text, now()),
            )
        return study_id

    def find_study(self, settings: StudySettings) -> str | None:
        study_id, _ = _study_key(settings)
        with self._read() as db:
            found = db.execute("SELECT id FROM studies WHERE id = ?", (study_id,)).fetchone()
        return found[0] if found else None

    def resolve(self, study_id: str) -> str:
        return self._only(study_id, "study")[1]

    def study(self, study_id: str) -> StudySettings:
        return exact.from_text(StudySettings, self._study_column(study_id, "settings"))

    def studies(self) -> tuple[StudySummary, ...]:
        with self._read() as db:
            rows = db.execute(
                "SELECT s.id, s.task, s.fingerprint, s.created_at, s.finished_at, "
                "count(DISTINCT t.id), count(DISTINCT CASE WHEN t.outcome IS NOT NULL THEN t.id END) "
                "FROM studies s LEFT JOIN study_trials l ON l.study_id = s.id LEFT JOIN trials t ON t.id = l.trial_id "
                "GROUP BY s.id ORDER BY s.created_at, s.rowid"
            ).fetchall()
        return tuple(StudySummary(*row) for row in rows)

    def newest_tuned_study(self, fingerprint: str) -> str | None:
        with self._read() as db:
            found = db.execute(
                "SELECT s.id FROM studies s WHERE s.fingerprint = ? AND s.finished_at IS NOT NULL "
                "AND 'tuned' IN (SELECT value FROM json_each(s.settings, '$.policies')) "
                "ORDER BY s.finished_at DESC, s.rowid DESC LIMIT 1",
                (fingerprint,),
            ).fetchone()
        return found[0] if found else None

    def finish_study(self, study_id: str) -> None:
        self._set_study(study_id, "finished_at = coalesce(finished_at, ?)", now())

    def set_timing(self, study_id: str, timing: TimingPass) -> None:
        self._set_study(study_id, "timing = ?", exact.to_text(timing))

    def timing(self, study_id: str) -> TimingPass | None:
        text = self._study_column(study_id, "timing")
        return None if text is None else exact.from_text(TimingPass, text)

    def set_choices(self, study_id: str, choices: Sequence[TunedChoice]) -> None:
        self._set_study(study_id, "choices = ?", exact.to_text(list(choices)))

    def choices(self, study_id: str) -> tuple[TunedChoice, ...]:
        return exact.from_text(tuple[TunedChoice, ...], self._study_column(study_id, "choices") or "[]")

    def set_reference(self, study_id: str, examples: float, reached: bool) -> None:
        self._set_study(study_id, "reference_examples = ?, reference_reached = ?", float(examples), bool(reached))

    def reference(self, study_id: str) -> tuple[float, bool] | None:
        with self._read():
            examples = self._study_column(study_id, "reference_examples")
            reached = self._study_column(study_id, "reference_reached")
        return None if examples is None else (float(examples), bool(reached))

    def add_note(self, study_id: str, note: str) -> None:
        with self._write() as db:
            study = self.resolve(study_id)
            db.execute(
                "INSERT OR IGNORE INTO notes SELECT ?, count(*), ? FROM notes WHERE study_id = ?",
                (study, exact.clean(note), study),
            )

    def notes(self, study_id: str) -> tuple[str, ...]:
        with self._read() as db:
            rows = db.execute(
                "SELECT note FROM notes WHERE study_id = ? ORDER BY position", (self.resolve(study_id),)
            ).fetchall()
        return tuple(note for (note,) in rows)

    def study_data(self, study_id: str) -> StudyData:
        with self._read():
            return super().study_data(study_id)

    def _only(self, beginning: str, *kinds: str) -> tuple[str, str]:
        """(kind, full id) of the one thing of these kinds (keys of `TABLES`) whose id begins like this."""
        with self._read() as db:
            found = [
                (kind, full_id)
                for kind in kinds
                for (full_id,) in db.execute(
                    f"SELECT id FROM {TABLES[kind]} WHERE substr(id, 1, ?) = ? ORDER BY rowid",
                    (len(beginning), beginning),
                )
            ]
        if len(found) == 1:
            return found[0]
        raise StoreError(_none_or_several(found, kinds, f"in {self.path}", beginning))

    def _study_column(self, study_id: str, column: str) -> Any:
        with self._read() as db:
            return db.execute(f"SELECT {column} FROM studies WHERE id = ?", (self.resolve(study_id),)).fetchone()[0]

    def _set_study(self, study_id: str, assignment: str, *values: object) -> None:
        with self._write() as db:
            db.execute(f"UPDATE studies SET {assignment} WHERE id = ?", (*values, self.resolve(study_id)))


def _study_key(settings: StudySettings) -> tuple[str, str]:
    """(id, JSON) of settings, with numbers as their fields' types: a learning rate of 1 is one of 1.0."""
    settings = from_plain(StudySettings, to_plain(settings))
    return digest(to_plain(settings), 12), exact.to_text(settings)


def _none_or_several(found: list[tuple[str, str]], kinds: Sequence[str], where: str, beginning: str) -> str:
    """Why a beginning is not an id."""
    if not found:
        return f"no {_listed(kinds, 'or')} {where} begins with {beginning!r}: `batchscope list` shows what there is"
    ids = {kind: [full_id for k, full_id in found if k == kind] for kind in kinds}
    plural = {kind: TABLES[kind].replace("_", " ") for kind in kinds}
    counts = [f"{len(some)} {kind if len(some) == 1 else plural[kind]}" for kind, some in ids.items() if some]
    names = [one if len(counts) == 1 else f"{kind} {one}" for kind, some in ids.items() for one in some[:5]]
    return f"{_listed(counts, 'and')} {where} begin with {beginning!r}: give more of {', '.join(names)}"


def _listed(words: Sequence[str], last: str) -> str:
    """`a`, `a or b`, `a, b or c`, where `or` is `last`."""
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def digest(plain: Any, digits: int) -> str:
    """Hex digits of the SHA-256 of canonical JSON; at 12 digits, a million studies collide with odds of 1 in 500."""
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def now() -> str:
    """The time in UTC, ISO 8601 with microseconds: as text it sorts as it should."""
    return datetime.now(UTC).isoformat(timespec="microseconds")

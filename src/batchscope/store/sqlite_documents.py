"""How do profiles, noise runs, advices, scalings, sharpnesses, matches and parts live in tables of their own?

The contract is in `base_documents.py`.

All are *documents*: one record as one JSON text, written once, in one statement, and read whole. Beside the text
stand the columns that it is looked up by, so that a study finds its profile among hundreds without reading them.
`measured_at` there is the record's own time as UTC with microseconds, so that text sorts as time does; the record keeps
the text it came with. The id is a digest of the fields that tell one document from another (`Kind.identity`).
A part has a key of its caller's instead, and may be any plain data.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from batchscope.errors import StoreError
from batchscope.records import (
    AdviceData,
    Conditions,
    MatchData,
    NoiseRun,
    ProfileData,
    ScalingData,
    SharpnessData,
    from_plain,
    to_plain,
)
from batchscope.store import exact
from batchscope.store.replies import NoiseSummary
from batchscope.store.sqlite_studies import TABLES, StudyTables, digest, now

LONG_FIELDS = ("measurements", "trace", "deviations", "layers", "proxies")  # what a `NoiseSummary` leaves out
NEWEST_FIRST = "ORDER BY measured_at DESC, rowid DESC"
Document = TypeVar("Document", ProfileData, NoiseRun, AdviceData, ScalingData, SharpnessData, MatchData)


@dataclass(frozen=True)
class Kind(Generic[Document]):
    """One kind of document: the word for it (a key of `TABLES`), its record class, and what its id is made of."""

    name: str
    record: type[Document]
    identity: tuple[str, ...]
    column: str  # of its JSON


PROFILES = Kind(
    "profile",
    ProfileData,
    ("fingerprint", "conditions", "batch_sizes", "memory_limit", "seed", "measured_at"),
    column="profile",
)
NOISE_RUNS = Kind(
    "noise run",
    NoiseRun,
    (
        "fingerprint",
        "conditions",
        "batch_size",
        "learning_rate",
        "seed",
        "budget",
        "source",
        "every",
        "measured_at",
    ),
    column="noise_run",
)
ADVICES = Kind("advice", AdviceData, ("fingerprint", "conditions", "question", "measured_at"), column="advice")
SCALINGS = Kind("scaling", ScalingData, ("fingerprint", "conditions", "question", "measured_at"), column="scaling")
SHARPNESSES = Kind(
    "sharpness", SharpnessData, ("fingerprint", "conditions", "question", "measured_at"), column="sharpness"
)
MATCHES = Kind("match", MatchData, ("fingerprint", "conditions", "question", "measured_at"), column="match_data")


class DocumentTables(StudyTables):
    """What the contract says of documents and parts, on the file that `StudyTables` opened."""

    # --- profiles ---

    def save_profile(self, profile: ProfileData) -> str:
        return self._save(PROFILES, profile)

    def profiles(self, fingerprint: str | None = None) -> tuple[tuple[str, ProfileData], ...]:
        return self._all(PROFILES, fingerprint)

    def newest_profile(self, fingerprint: str, conditions: Conditions) -> ProfileData | None:
        with self._read() as db:
            rows = db.execute(
                f"SELECT id, conditions FROM profiles WHERE fingerprint = ? {NEWEST_FIRST}", (fingerprint,)
            ).fetchall()
            found = (i for i, text in rows if exact.from_text(Conditions, text) == conditions)
            newest = next(found, None)
            return None if newest is None else self.profile(newest)

    def profile(self, profile_id: str) -> ProfileData:
        return self._one(PROFILES, profile_id)

    def resolve_profile(self, profile_id: str) -> str:
        return self._only(profile_id, "profile")[1]

    # --- noise runs ---

    def save_noise_run(self, run: NoiseRun) -> str:
        return self._save(NOISE_RUNS, run)

    def noise_runs(self, fingerprint: str | None = None) -> tuple[tuple[str, NoiseRun], ...]:
        return self._all(NOISE_RUNS, fingerprint)

    def noise_summaries(self) -> tuple[NoiseSummary, ...]:
        parts = ", ".join(f"'$.{name}'" for name in LONG_FIELDS)
        with self._read() as db:
            rows = db.execute(
                f"SELECT id, json_array_length(noise_run, '$.measurements'), json_remove(noise_run, {parts}) "
                "FROM noise_runs ORDER BY measured_at, rowid"
            ).fetchall()
        return tuple(NoiseSummary(full_id, count, exact.from_text(NoiseRun, text)) for full_id, count, text in rows)

    def noise_run(self, noise_id: str) -> NoiseRun:
        return self._one(NOISE_RUNS, noise_id)

    def resolve_noise_run(self, noise_id: str) -> str:
        return self._only(noise_id, "noise run")[1]

    # --- advices ---

    def save_advice(self, data: AdviceData) -> str:
        return self._save(ADVICES, data)

    def advices(self, fingerprint: str | None = None) -> tuple[tuple[str, AdviceData], ...]:
        return self._all(ADVICES, fingerprint)

    def advice(self, advice_id: str) -> AdviceData:
        return self._one(ADVICES, advice_id)

    def resolve_advice(self, advice_id: str) -> str:
        return self._only(advice_id, "advice")[1]

    # --- scalings ---

    def save_scaling(self, data: ScalingData) -> str:
        return self._save(SCALINGS, data)

    def scalings(self, fingerprint: str | None = None) -> tuple[tuple[str, ScalingData], ...]:
        return self._all(SCALINGS, fingerprint)

    def scaling(self, scaling_id: str) -> ScalingData:
        return self._one(SCALINGS, scaling_id)

    def resolve_scaling(self, scaling_id: str) -> str:
        return self._only(scaling_id, "scaling")[1]

    # --- sharpnesses ---

    def save_sharpness(self, data: SharpnessData) -> str:
        return self._save(SHARPNESSES, data)

    def sharpnesses(self, fingerprint: str | None = None) -> tuple[tuple[str, SharpnessData], ...]:
        return self._all(SHARPNESSES, fingerprint)

    def sharpness(self, sharpness_id: str) -> SharpnessData:
        return self._one(SHARPNESSES, sharpness_id)

    def resolve_sharpness(self, sharpness_id: str) -> str:
        return self._only(sharpness_id, "sharpness")[1]

    # --- matches ---

    def save_match(self, data: MatchData) -> str:
        return self._save(MATCHES, data)

    def matches(self, fingerprint: str | None = None) -> tuple[tuple[str, MatchData], ...]:
        return self._all(MATCHES, fingerprint)

    def match(self, match_id: str) -> MatchData:
        return self._one(MATCHES, match_id)

    def resolve_match(self, match_id: str) -> str:
        return self._only(match_id, "match")[1]

    # --- parts ---

    def save_part(self, key: str, fingerprint: str, kind: str, content: Any) -> None:
        if content is None:
            raise ValueError(f"a part needs content, got None for the key {key!r}: save what was measured, or nothing")
        row = (key, fingerprint, kind, exact.to_text(content), now())
        with self._write() as db:
            db.execute(
                "INSERT INTO parts (key, fingerprint, kind, content, made_at) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (key) DO NOTHING",
                row,
            )

    def part(self, key: str) -> Any | None:
        with self._read() as db:
            found = db.execute("SELECT content FROM parts WHERE key = ?", (key,)).fetchone()
        return None if found is None else json.loads(found[0])

    # --- anything with an id ---

    def resolve_any(self, beginning: str) -> tuple[str, str]:
        return self._only(beginning, *TABLES)

    # --- what they share ---

    def _save(self, kind: Kind[Document], document: Document) -> str:
        """Store a document under the id that its identity gives, or find the very same one there."""
        document = from_plain(kind.record, to_plain(document))  # numbers as their fields' types, as when read again
        text = exact.to_text(document)
        full_id = digest({name: to_plain(getattr(document, name)) for name in kind.identity}, 12)
        row = (
            full_id,
            exact.clean(document.task),
            document.fingerprint,
            exact.to_text(document.conditions),
            _utc(document.measured_at, kind.name),
            text,
        )
        with self._write() as db:
            new = db.execute(
                f"INSERT OR IGNORE INTO {TABLES[kind.name]} "
                f"(id, task, fingerprint, conditions, measured_at, {kind.column}) VALUES (?, ?, ?, ?, ?, ?)",
                row,
            ).rowcount
            if not new and exact.to_text(self._one(kind, full_id)) != text:
                raise StoreError(
                    f"{kind.name} {full_id} of {document.measured_at} is stored with other numbers: the first stays; "
                    "give each measurement its own `measured_at`"
                )
        return full_id

    def _all(self, kind: Kind[Document], fingerprint: str | None) -> tuple[tuple[str, Document], ...]:
        """(id, document), newest first; of one task fingerprint, or of all."""
        with self._read() as db:
            rows = db.execute(
                f"SELECT id, {kind.column} FROM {TABLES[kind.name]} "
                f"WHERE ?1 IS NULL OR fingerprint = ?1 {NEWEST_FIRST}",
                (fingerprint,),
            ).fetchall()
        return tuple((full_id, exact.from_text(kind.record, text)) for full_id, text in rows)

    def _one(self, kind: Kind[Document], beginning: str) -> Document:
        """The document whose id begins like this."""
        with self._read() as db:
            (text,) = db.execute(
                f"SELECT {kind.column} FROM {TABLES[kind.name]} WHERE id = ?", (self._only(beginning, kind.name)[1],)
            ).fetchone()
        return exact.from_text(kind.record, text)


def _utc(time: str, name: str) -> str:
    """A time as UTC, ISO 8601 with microseconds; one without an offset is UTC already, as the record says."""
    try:
        read = datetime.fromisoformat(time)
    except ValueError:
        raise ValueError(
            f"each {name} needs `measured_at` as a time in UTC, ISO 8601, got {time!r}: "
            "write datetime.now(UTC).isoformat()"
        ) from None
    read = read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)
    return read.isoformat(timespec="microseconds")

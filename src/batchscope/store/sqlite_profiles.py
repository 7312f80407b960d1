"""How do profiles live in the table `profiles`, and which one is newest? The contract is in `base.py`.

A profile is one JSON document: it is written once, in one statement, and read whole. Beside it stand the columns it is
looked up by, so that a study finds its profile among hundreds without reading them. `measured_at` there is the record's
own time as UTC with microseconds, so that text sorts as time does; the record keeps the text it came with.
"""

from __future__ import annotations

from datetime import UTC, datetime

from batchscope.errors import StoreError
from batchscope.records import Conditions, ProfileData, from_plain, to_plain
from batchscope.store import exact
from batchscope.store.sqlite_studies import StudyTables, digest

IDENTITY = ("fingerprint", "conditions", "batch_sizes", "memory_limit", "seed", "measured_at")  # what an id is made of
NEWEST_FIRST = "ORDER BY measured_at DESC, rowid DESC"


class ProfileTables(StudyTables):
    """The half of the contract that concerns profiles, on the file that `StudyTables` opened."""

    def save_profile(self, profile: ProfileData) -> str:
        measured_at, conditions = _utc(profile.measured_at), exact.to_text(profile.conditions)
        profile_id, text = _profile_key(profile)
        with self._write() as db:
            new = db.execute(
                "INSERT OR IGNORE INTO profiles (id, task, fingerprint, conditions, measured_at, profile) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (profile_id, exact.clean(profile.task), profile.fingerprint, conditions, measured_at, text),
            ).rowcount
            if not new and exact.to_text(self.profile(profile_id)) != text:
                raise StoreError(
                    f"profile {profile_id} of {profile.measured_at} is stored with other numbers: the first stays; "
                    "give each measurement its own `measured_at`"
                )
        return profile_id

    def profiles(self, fingerprint: str | None = None) -> tuple[tuple[str, ProfileData], ...]:
        with self._read() as db:
            rows = db.execute(
                f"SELECT id, profile FROM profiles WHERE ?1 IS NULL OR fingerprint = ?1 {NEWEST_FIRST}", (fingerprint,)
            ).fetchall()
        return tuple((profile_id, exact.from_text(ProfileData, text)) for profile_id, text in rows)

    def newest_profile(self, fingerprint: str, conditions: Conditions) -> ProfileData | None:
        with self._read() as db:
            rows = db.execute(
                f"SELECT id, conditions FROM profiles WHERE fingerprint = ? {NEWEST_FIRST}", (fingerprint,)
            ).fetchall()
            found = (i for i, text in rows if exact.from_text(Conditions, text) == conditions)
            newest = next(found, None)
            return None if newest is None else self.profile(newest)

    def profile(self, profile_id: str) -> ProfileData:
        with self._read() as db:
            (text,) = db.execute(
                "SELECT profile FROM profiles WHERE id = ?", (self.resolve_profile(profile_id),)
            ).fetchone()
        return exact.from_text(ProfileData, text)

    def resolve_profile(self, profile_id: str) -> str:
        return self._only(profile_id, "profile")[1]

    def resolve_any(self, beginning: str) -> tuple[str, str]:
        return self._only(beginning, "study", "profile")


def _profile_key(profile: ProfileData) -> tuple[str, str]:
    """(id, JSON) of a profile, with numbers as their fields' types, as they are when it is read again."""
    profile = from_plain(ProfileData, to_plain(profile))
    plain = to_plain(profile)
    return digest({name: plain[name] for name in IDENTITY}, 12), exact.to_text(profile)


def _utc(time: str) -> str:
    """A time as UTC, ISO 8601 with microseconds; one without an offset is UTC already, as the record says."""
    try:
        read = datetime.fromisoformat(time)
    except ValueError:
        raise ValueError(
            f"a profile needs `measured_at` as a time in UTC, ISO 8601, got {time!r}: "
            "write datetime.now(UTC).isoformat()"
        ) from None
    read = read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)
    return read.isoformat(timespec="microseconds")

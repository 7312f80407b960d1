-- From layout 3 to 4: profiles.
CREATE TABLE profiles (
    id          TEXT PRIMARY KEY,         -- 12 hex digits of the SHA-256 of what tells it from others (base.py)
    task        TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    conditions  TEXT NOT NULL,            -- JSON: records.Conditions
    measured_at TEXT NOT NULL,
    profile     TEXT NOT NULL             -- JSON: records.ProfileData
);

-- From layout 6 to 7: scalings.
CREATE TABLE scalings (
    id          TEXT PRIMARY KEY,         -- 12 hex digits of the SHA-256 of what tells it from others (base.py)
    task        TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    conditions  TEXT NOT NULL,            -- JSON: records.Conditions
    measured_at TEXT NOT NULL,
    scaling     TEXT NOT NULL             -- JSON: records.ScalingData
);

-- From layout 5 to 6: advices.
CREATE TABLE advices (
    id          TEXT PRIMARY KEY,         -- 12 hex digits of the SHA-256 of what tells it from others (base.py)
    task        TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    conditions  TEXT NOT NULL,            -- JSON: records.Conditions
    measured_at TEXT NOT NULL,
    advice      TEXT NOT NULL             -- JSON: records.AdviceData
);

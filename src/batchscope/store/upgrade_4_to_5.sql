-- From layout 4 to 5: noise runs.
CREATE TABLE noise_runs (
    id          TEXT PRIMARY KEY,         -- 12 hex digits of the SHA-256 of what tells it from others (base.py)
    task        TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    conditions  TEXT NOT NULL,            -- JSON: records.Conditions
    measured_at TEXT NOT NULL,
    noise_run   TEXT NOT NULL             -- JSON: records.NoiseRun
);

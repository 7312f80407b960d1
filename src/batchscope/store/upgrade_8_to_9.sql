-- From layout 8 to 9: matches.
CREATE TABLE matches (
    id          TEXT PRIMARY KEY,         -- 12 hex digits of the SHA-256 of what tells it from others (base.py)
    task        TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    conditions  TEXT NOT NULL,            -- JSON: records.Conditions
    measured_at TEXT NOT NULL,
    match_data  TEXT NOT NULL             -- JSON: records.MatchData
);

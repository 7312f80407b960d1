-- From layout 7 to 8: sharpnesses, and parts of what is still being measured.
CREATE TABLE sharpnesses (
    id          TEXT PRIMARY KEY,         -- 12 hex digits of the SHA-256 of what tells it from others (base.py)
    task        TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    conditions  TEXT NOT NULL,            -- JSON: records.Conditions
    measured_at TEXT NOT NULL,
    sharpness   TEXT NOT NULL             -- JSON: records.SharpnessData
);

-- What a long measurement has finished so far, under a key that says what it is and depends on: the first is kept.
CREATE TABLE parts (
    key         TEXT PRIMARY KEY,
    fingerprint TEXT NOT NULL,
    kind        TEXT NOT NULL,
    content     TEXT NOT NULL,            -- JSON: a record, or plain data
    made_at     TEXT NOT NULL
);

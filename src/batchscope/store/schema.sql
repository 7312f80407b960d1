-- What is in a store file? Version 9 of the layout; `connection.py` upgrades older files to it.
--
-- Times are UTC, ISO 8601; only expires_at and lease_expires_at are in seconds since 1970, as they are compared.
-- JSON columns hold records as `records.to_plain` writes them. Numbers that are not finite are the texts 'nan', '-nan',
-- 'inf', '-inf' there and in distance and update_norm, which have no declared type so that -0.0 survives (exact.py).
-- To look at curves, read the view `curves`, where such numbers are NULL.

-- Every (name, fingerprint) ever met: a changed task under an old name is noticed, and what changed can be named.
CREATE TABLE tasks (
    name        TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    components  TEXT NOT NULL,            -- JSON: what was hashed -> its hash
    seen_at     TEXT NOT NULL,            -- last time
    PRIMARY KEY (name, fingerprint)
);

CREATE TABLE studies (
    id                 TEXT PRIMARY KEY,  -- 12 hex digits of the SHA-256 of the settings
    task               TEXT NOT NULL,
    fingerprint        TEXT NOT NULL,
    settings           TEXT NOT NULL,     -- JSON: records.StudySettings
    created_at         TEXT NOT NULL,
    finished_at        TEXT,
    timing             TEXT,              -- JSON: records.TimingPass
    choices            TEXT,              -- JSON: list of records.TunedChoice
    reference_examples REAL,
    reference_reached  INTEGER
);

-- Seconds and bytes against batch size: every measurement is kept, the newest counts.
CREATE TABLE profiles (
    id          TEXT PRIMARY KEY,         -- 12 hex digits of the SHA-256 of what tells it from others (base.py)
    task        TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    conditions  TEXT NOT NULL,            -- JSON: records.Conditions
    measured_at TEXT NOT NULL,
    profile     TEXT NOT NULL             -- JSON: records.ProfileData
);

-- Squared gradient norms along a run, and the deviations of its checkpoints: every measurement is kept.
CREATE TABLE noise_runs (
    id          TEXT PRIMARY KEY,         -- 12 hex digits of the SHA-256 of what tells it from others (base.py)
    task        TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    conditions  TEXT NOT NULL,            -- JSON: records.Conditions
    measured_at TEXT NOT NULL,
    noise_run   TEXT NOT NULL             -- JSON: records.NoiseRun
);

-- What one `recommend` was asked and measured: every measurement is kept.
CREATE TABLE advices (
    id          TEXT PRIMARY KEY,         -- 12 hex digits of the SHA-256 of what tells it from others (base.py)
    task        TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    conditions  TEXT NOT NULL,            -- JSON: records.Conditions
    measured_at TEXT NOT NULL,
    advice      TEXT NOT NULL             -- JSON: records.AdviceData
);

-- What one `scale` measured, over device counts and batch sizes: every measurement is kept.
CREATE TABLE scalings (
    id          TEXT PRIMARY KEY,         -- 12 hex digits of the SHA-256 of what tells it from others (base.py)
    task        TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    conditions  TEXT NOT NULL,            -- JSON: records.Conditions
    measured_at TEXT NOT NULL,
    scaling     TEXT NOT NULL             -- JSON: records.ScalingData
);

-- What one `sharpness` measured at the weights of a study's trials, or of checkpoints: every measurement is kept.
CREATE TABLE sharpnesses (
    id          TEXT PRIMARY KEY,         -- 12 hex digits of the SHA-256 of what tells it from others (base.py)
    task        TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    conditions  TEXT NOT NULL,            -- JSON: records.Conditions
    measured_at TEXT NOT NULL,
    sharpness   TEXT NOT NULL             -- JSON: records.SharpnessData
);

-- What one `match` ran and timed: every measurement is kept.
CREATE TABLE matches (
    id          TEXT PRIMARY KEY,         -- 12 hex digits of the SHA-256 of what tells it from others (base.py)
    task        TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    conditions  TEXT NOT NULL,            -- JSON: records.Conditions
    measured_at TEXT NOT NULL,
    match_data  TEXT NOT NULL             -- JSON: records.MatchData
);

-- What a long measurement has finished so far, under a key that says what it is and depends on: the first is kept.
CREATE TABLE parts (
    key         TEXT PRIMARY KEY,
    fingerprint TEXT NOT NULL,
    kind        TEXT NOT NULL,
    content     TEXT NOT NULL,            -- JSON: a record, or plain data
    made_at     TEXT NOT NULL
);

CREATE TABLE notes (
    study_id TEXT NOT NULL REFERENCES studies (id),
    position INTEGER NOT NULL,
    note     TEXT NOT NULL,
    PRIMARY KEY (study_id, position),
    UNIQUE (study_id, note)
);

CREATE TABLE trials (
    id               INTEGER PRIMARY KEY,
    fingerprint      TEXT NOT NULL,
    conditions_key   TEXT NOT NULL,
    spec_key         TEXT NOT NULL,
    spec             TEXT NOT NULL,       -- JSON: records.TrialSpec
    conditions       TEXT NOT NULL,       -- JSON: records.Conditions
    created_at       TEXT NOT NULL,
    finished_at      TEXT,
    outcome          TEXT,                -- NULL until it has a result
    result           TEXT,                -- JSON: records.TrialResult without its trace
    attempts         INTEGER NOT NULL DEFAULT 0,
    lease_owner      TEXT,                -- NULL: nobody runs it
    lease_pid        INTEGER,
    lease_host       TEXT,
    lease_started    TEXT,                -- start of the process, so that a reused id is not taken for it
    lease_expires_at REAL,
    UNIQUE (fingerprint, conditions_key, spec_key)
);

CREATE TABLE evaluations (
    trial_id    INTEGER NOT NULL REFERENCES trials (id),
    k           INTEGER NOT NULL,         -- 0, 1, 2, ...
    step        INTEGER NOT NULL,
    examples    INTEGER NOT NULL,
    train       TEXT NOT NULL,            -- JSON: metric -> value
    validation  TEXT NOT NULL,            -- JSON: metric -> value
    distance    NOT NULL,
    update_norm NOT NULL,
    PRIMARY KEY (trial_id, k)
) WITHOUT ROWID;

CREATE TABLE study_trials (
    study_id TEXT NOT NULL REFERENCES studies (id),
    role     TEXT NOT NULL,               -- held, tuned, tuning, reference
    position INTEGER NOT NULL,
    trial_id INTEGER NOT NULL REFERENCES trials (id),
    PRIMARY KEY (study_id, role, position),
    UNIQUE (study_id, role, trial_id)
);

CREATE TABLE attempts (
    trial_id   INTEGER NOT NULL REFERENCES trials (id),
    number     INTEGER NOT NULL,          -- 1, 2, 3, ...
    owner      TEXT NOT NULL,
    started_at TEXT NOT NULL,
    ended_at   TEXT,
    how        TEXT,                      -- finished, died, interrupted; NULL while it runs
    reason     TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (trial_id, number)
);

-- At most one row: who has claimed the machine to itself, so that nobody else starts a trial while it times steps.
CREATE TABLE machine (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    owner      TEXT NOT NULL,
    pid        INTEGER NOT NULL,
    host       TEXT NOT NULL,
    started    TEXT NOT NULL,
    expires_at REAL NOT NULL              -- seconds since 1970
);

-- The curves, for people who come with SQL: one row per evaluation, NULL where a number is not finite.
CREATE VIEW curves AS
SELECT e.trial_id, t.fingerprint,
       json_extract(t.spec, '$.arm.batch_size') AS batch_size,
       json_extract(t.spec, '$.arm.learning_rate') AS learning_rate,
       json_extract(t.spec, '$.seed') AS seed,
       e.k, e.step, e.examples,
       CASE json_type(e.train, '$.loss') WHEN 'real' THEN json_extract(e.train, '$.loss') END AS train_loss,
       CASE json_type(e.validation, '$.loss') WHEN 'real' THEN json_extract(e.validation, '$.loss') END AS validation_loss,
       CASE typeof(e.distance) WHEN 'real' THEN e.distance END AS distance,
       CASE typeof(e.update_norm) WHEN 'real' THEN e.update_norm END AS update_norm
FROM evaluations e JOIN trials t ON t.id = e.trial_id;

-- From layout 2 to 3: who has claimed the machine to itself.
CREATE TABLE machine (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    owner      TEXT NOT NULL,
    pid        INTEGER NOT NULL,
    host       TEXT NOT NULL,
    started    TEXT NOT NULL,
    expires_at REAL NOT NULL              -- seconds since 1970
);

-- From layout 1 to 2: tasks that were seen, and the view of all curves.
-- Version 1 knew a task only by its studies; those are carried over, without the hashes they were made of.
CREATE TABLE tasks (
    name        TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    components  TEXT NOT NULL,            -- JSON: what was hashed -> its hash
    seen_at     TEXT NOT NULL,            -- last time
    PRIMARY KEY (name, fingerprint)
);

INSERT INTO tasks SELECT task, fingerprint, '{}', max(created_at) FROM studies GROUP BY task, fingerprint;

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

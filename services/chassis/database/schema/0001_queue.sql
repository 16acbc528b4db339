-- The durable queue, in every database beside the records its jobs belong to.
CREATE TABLE job (
    queue TEXT NOT NULL,
    id TEXT NOT NULL,
    priority BIGINT NOT NULL,
    state TEXT NOT NULL,
    due_at BIGINT NOT NULL,
    claims BIGINT NOT NULL DEFAULT 0,
    attempted BIGINT NOT NULL DEFAULT 0,
    failures BIGINT NOT NULL DEFAULT 0,
    crashes BIGINT NOT NULL DEFAULT 0,
    payload BYTEA NOT NULL,
    note TEXT NOT NULL DEFAULT '',
    trace TEXT NOT NULL DEFAULT '',
    created_at BIGINT NOT NULL,
    finished_at BIGINT,
    give_up_at BIGINT NOT NULL,
    PRIMARY KEY (queue, id)
);

-- With the state in it, a look for vanished workers does not read the whole backlog.
CREATE INDEX job_due ON job (queue, priority, state, due_at) WHERE state IN ('queued', 'running');

CREATE INDEX job_finished ON job (queue, finished_at) WHERE finished_at IS NOT NULL;

CREATE INDEX job_dead ON job (queue) WHERE state = 'dead';

-- One row per queue, shared by all replicas: when the provider's next slot is free (in
-- microseconds), and until when nothing may be sent (in milliseconds).
CREATE TABLE pace (
    queue TEXT NOT NULL PRIMARY KEY,
    free_at BIGINT NOT NULL DEFAULT 0,
    paused_until BIGINT NOT NULL DEFAULT 0,
    reason TEXT NOT NULL DEFAULT ''
);

-- An operator lists dead letters and parked jobs from the newest, and walks through them in batches.
CREATE INDEX job_set_aside ON job (queue, state, created_at DESC, id) WHERE state IN ('dead', 'parked');

DROP INDEX job_dead;

-- What operators changed, each row stored with its change. An operation of several batches adds to its row.
CREATE TABLE audit (
    id TEXT NOT NULL PRIMARY KEY,
    caller TEXT NOT NULL,
    method TEXT NOT NULL,
    target TEXT NOT NULL,
    detail TEXT NOT NULL,
    reason TEXT NOT NULL,
    changed BIGINT NOT NULL,
    refused BIGINT NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE INDEX audit_newest ON audit (created_at DESC, id);

-- How an operator wants a breaker to decide. The version rises with each change, so that a replica sees one made twice.
CREATE TABLE breaker_mode (
    breaker TEXT NOT NULL PRIMARY KEY,
    mode TEXT NOT NULL,
    reason TEXT NOT NULL,
    set_by TEXT NOT NULL,
    set_at BIGINT NOT NULL,
    version BIGINT NOT NULL
);

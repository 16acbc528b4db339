-- `record` is the contract's Payment as bytes, never with a client_secret; the columns are what is asked for by SQL.
-- `rank` never falls; from 80 on a payment is final. `sole`: it excludes another open one for its appointment.
-- `confirmed`: by this service when it was created, so that the payer has a code or voucher and no form.
CREATE TABLE payment (
    payment_id TEXT NOT NULL PRIMARY KEY,
    caller TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    appointment_id TEXT NOT NULL,
    sole BIGINT NOT NULL,
    confirmed BIGINT NOT NULL,
    intent_id TEXT NOT NULL DEFAULT '',
    client_secret TEXT NOT NULL DEFAULT '',
    status TEXT NOT NULL,
    rank BIGINT NOT NULL,
    refusal TEXT NOT NULL DEFAULT '',
    version BIGINT NOT NULL DEFAULT 0,
    refreshes BIGINT NOT NULL DEFAULT 0,
    refresh_waiting BIGINT NOT NULL DEFAULT 0,
    record BYTEA NOT NULL
);

CREATE UNIQUE INDEX payment_key ON payment (caller, idempotency_key);

CREATE UNIQUE INDEX payment_sole ON payment (appointment_id) WHERE sole = 1 AND rank < 80;

CREATE INDEX payment_appointment ON payment (appointment_id);

CREATE UNIQUE INDEX payment_intent ON payment (intent_id) WHERE intent_id <> '';

-- The events that are dealt with; a row is written by the transaction that does so.
CREATE TABLE stripe_event (
    event_id TEXT NOT NULL PRIMARY KEY,
    applied_at BIGINT NOT NULL
);

CREATE INDEX stripe_event_applied ON stripe_event (applied_at);

-- Every change of every payment, numbered in the order of their commits; what is older than `purged` is forgotten.
CREATE TABLE payment_change (
    number BIGINT NOT NULL PRIMARY KEY,
    previous_status TEXT NOT NULL,
    record BYTEA NOT NULL,
    changed_at BIGINT NOT NULL
);

CREATE TABLE change_counter (
    id BIGINT NOT NULL PRIMARY KEY,
    number BIGINT NOT NULL,
    purged BIGINT NOT NULL
);

INSERT INTO change_counter (id, number, purged) VALUES (1, 0, 0);

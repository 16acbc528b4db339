-- An email as it was asked for and what became of it. Its words are in its job alone, and only until that is done.
CREATE TABLE email (
    email_id TEXT NOT NULL PRIMARY KEY,
    caller TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    template TEXT NOT NULL,
    subject TEXT NOT NULL,
    address TEXT NOT NULL,
    name TEXT NOT NULL,
    appointment_id TEXT NOT NULL,
    status TEXT NOT NULL,
    rank BIGINT NOT NULL,
    provider TEXT NOT NULL DEFAULT '',
    provider_message_id TEXT NOT NULL DEFAULT '',
    failure_reason TEXT NOT NULL DEFAULT '',
    scheduled_at BIGINT NOT NULL,
    useless_at BIGINT,
    doubted_at BIGINT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    UNIQUE (caller, idempotency_key)
);

CREATE INDEX email_by_appointment ON email (appointment_id);

-- How an email got where it stands, one row a step.
CREATE TABLE email_change (
    email_id TEXT NOT NULL,
    number BIGINT NOT NULL,
    status TEXT NOT NULL,
    changed_at BIGINT NOT NULL,
    detail TEXT NOT NULL,
    PRIMARY KEY (email_id, number)
);

-- The provider's events that have been dealt with.
CREATE TABLE email_event (
    event_id TEXT NOT NULL PRIMARY KEY,
    email_id TEXT NOT NULL,
    status TEXT NOT NULL,
    applied_at BIGINT NOT NULL
);

-- Messages as records. Their words are in their jobs only, which lose them at the hand-over.
CREATE TABLE message (
    message_id TEXT NOT NULL PRIMARY KEY,
    caller TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    template TEXT NOT NULL,
    recipient TEXT NOT NULL,
    recipient_name TEXT NOT NULL,
    appointment_id TEXT NOT NULL,
    encoding TEXT NOT NULL,
    segments BIGINT NOT NULL,
    status TEXT NOT NULL,
    rank BIGINT NOT NULL,
    failure_reason TEXT NOT NULL DEFAULT '',
    provider TEXT NOT NULL DEFAULT '',
    provider_message_id TEXT NOT NULL DEFAULT '',
    waiting_reason TEXT NOT NULL DEFAULT '',
    scheduled_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    outcome_unknown_since BIGINT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    UNIQUE (caller, idempotency_key)
);

CREATE INDEX message_appointment ON message (appointment_id) WHERE appointment_id <> '';

CREATE INDEX message_updated ON message (updated_at);

-- Each status after the first one, once: a message only moves forward.
CREATE TABLE message_change (
    message_id TEXT NOT NULL,
    status TEXT NOT NULL,
    rank BIGINT NOT NULL,
    changed_at BIGINT NOT NULL,
    detail TEXT NOT NULL,
    PRIMARY KEY (message_id, status)
);

-- Each request to a provider; the number is the claim of the job, which the provider's events bring back.
CREATE TABLE message_attempt (
    message_id TEXT NOT NULL,
    number BIGINT NOT NULL,
    provider TEXT NOT NULL,
    provider_message_id TEXT NOT NULL DEFAULT '',
    attempted_at BIGINT NOT NULL,
    outcome TEXT NOT NULL DEFAULT '',
    detail TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (message_id, number)
);

CREATE UNIQUE INDEX message_attempt_provider ON message_attempt (provider, provider_message_id)
    WHERE provider_message_id <> '';

-- The providers' events that were applied.
CREATE TABLE provider_event (
    provider TEXT NOT NULL,
    event_id TEXT NOT NULL,
    applied_at BIGINT NOT NULL,
    PRIMARY KEY (provider, event_id)
);

CREATE INDEX provider_event_applied ON provider_event (applied_at);

-- Texts as records. Their words are in their jobs only, which lose them at the hand-over.
CREATE TABLE sms (
    sms_id TEXT NOT NULL PRIMARY KEY,
    caller TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    template TEXT NOT NULL,
    recipient TEXT NOT NULL,
    appointment_id TEXT NOT NULL,
    encoding TEXT NOT NULL,
    segments BIGINT NOT NULL,
    status TEXT NOT NULL,
    rank BIGINT NOT NULL,
    failure_reason TEXT NOT NULL DEFAULT '',
    provider TEXT NOT NULL DEFAULT '',
    provider_message_id TEXT NOT NULL DEFAULT '',
    scheduled_at BIGINT NOT NULL,
    unsure_since BIGINT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    UNIQUE (caller, idempotency_key)
);

CREATE UNIQUE INDEX sms_provider_message ON sms (provider_message_id) WHERE provider_message_id <> '';

CREATE INDEX sms_appointment ON sms (appointment_id) WHERE appointment_id <> '';

-- How each text got where it is: every status after its first, once, since it only moves forward.
CREATE TABLE sms_change (
    sms_id TEXT NOT NULL,
    status TEXT NOT NULL,
    rank BIGINT NOT NULL,
    detail TEXT NOT NULL,
    changed_at BIGINT NOT NULL,
    PRIMARY KEY (sms_id, status)
);

-- Events that were dealt with.
CREATE TABLE event (
    event_id TEXT NOT NULL PRIMARY KEY,
    applied_at BIGINT NOT NULL
);

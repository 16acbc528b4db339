-- The number of an appointment's last calendar entry, by which calendars order them: seconds since 2026 or one more than
-- the last, so that it rises though a clock steps back, and though this row is purged.
CREATE TABLE appointment (
    caller TEXT NOT NULL,
    appointment_id TEXT NOT NULL,
    revision BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (caller, appointment_id)
);

CREATE INDEX appointment_updated ON appointment (updated_at);

ALTER TABLE message ADD COLUMN revision BIGINT NOT NULL DEFAULT 0;

UPDATE message SET revision = created_at / 1000 - 1767225600 WHERE template = 'appointment_confirmation';

INSERT INTO appointment (caller, appointment_id, revision, updated_at)
SELECT caller, appointment_id, MAX(revision), MAX(created_at) FROM message
WHERE template = 'appointment_confirmation' GROUP BY caller, appointment_id;

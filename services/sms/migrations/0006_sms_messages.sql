-- Texts become messages. Unlike later ones, this migration also removes: an older process cannot run on its result.
INSERT INTO message (message_id, caller, idempotency_key, fingerprint, template, recipient, recipient_name,
    appointment_id, encoding, segments, status, rank, failure_reason, provider, provider_message_id, scheduled_at,
    expires_at, outcome_unknown_since, created_at, updated_at)
SELECT sms_id, caller, idempotency_key, fingerprint, template, recipient, '', appointment_id, encoding, segments, status,
    CASE status WHEN 'UNKNOWN' THEN 30 WHEN 'CANCELED' THEN 40 WHEN 'EXPIRED' THEN 40 WHEN 'FAILED' THEN 40
        WHEN 'SENT' THEN 50 WHEN 'UNDELIVERED' THEN 65 WHEN 'SUPPRESSED' THEN 80 ELSE rank END,
    failure_reason, provider, provider_message_id, scheduled_at,
    COALESCE((SELECT give_up_at FROM job WHERE job.queue = 'twilio' AND job.id = sms_id), scheduled_at + 86400000),
    unsure_since, created_at, updated_at
FROM sms;

INSERT INTO message_change (message_id, status, rank, changed_at, detail)
SELECT sms_id, status,
    CASE status WHEN 'UNKNOWN' THEN 30 WHEN 'CANCELED' THEN 40 WHEN 'EXPIRED' THEN 40 WHEN 'FAILED' THEN 40
        WHEN 'SENT' THEN 50 WHEN 'UNDELIVERED' THEN 65 WHEN 'DELIVERED' THEN 70 ELSE 80 END,
    changed_at, detail
FROM sms_change;

INSERT INTO message_attempt (message_id, number, provider, provider_message_id, attempted_at, outcome)
SELECT sms_id, 1, 'twilio', provider_message_id, created_at, 'SENT' FROM sms WHERE provider_message_id <> '';

INSERT INTO provider_event (provider, event_id, applied_at) SELECT 'twilio', event_id, applied_at FROM event;

-- The pauses and the rate limit stay under the provider's name.
UPDATE job SET queue = 'sms', provider = 'twilio' WHERE queue = 'twilio';

DROP TABLE sms;

DROP TABLE sms_change;

DROP TABLE event;

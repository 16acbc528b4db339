-- Emails become messages. Unlike later ones, this migration also removes: an older process cannot run on its result.
INSERT INTO message (message_id, caller, idempotency_key, fingerprint, template, recipient, recipient_name,
    appointment_id, encoding, segments, status, rank, failure_reason, provider, provider_message_id, scheduled_at,
    expires_at, outcome_unknown_since, created_at, updated_at)
SELECT email_id, caller, idempotency_key, fingerprint, template, address, name, appointment_id, '', 0, status,
    CASE status WHEN 'DROPPED' THEN 82 WHEN 'BOUNCED' THEN 84 ELSE rank END,
    failure_reason, provider, provider_message_id, scheduled_at,
    COALESCE(useless_at, scheduled_at + 86400000), doubted_at, created_at, updated_at
FROM email;

INSERT INTO message_change (message_id, status, rank, changed_at, detail)
SELECT email_change.email_id, email_change.status,
    CASE email_change.status WHEN 'UNKNOWN' THEN 30 WHEN 'CANCELED' THEN 40 WHEN 'EXPIRED' THEN 40 WHEN 'FAILED' THEN 40
        WHEN 'SENT' THEN 50 WHEN 'DEFERRED' THEN 60 WHEN 'DELIVERED' THEN 70 WHEN 'SUPPRESSED' THEN 80
        WHEN 'DROPPED' THEN 82 WHEN 'BOUNCED' THEN 84 ELSE 90 END,
    MAX(changed_at) OVER (PARTITION BY email_id ORDER BY number), detail
FROM email_change WHERE status NOT IN ('SCHEDULED', 'QUEUED');

INSERT INTO message_attempt (message_id, number, provider, provider_message_id, attempted_at, outcome)
SELECT MIN(email_id), 1, 'sendgrid', provider_message_id, MIN(created_at), 'SENT'
FROM email WHERE provider_message_id <> '' GROUP BY provider_message_id;

INSERT INTO provider_event (provider, event_id, applied_at) SELECT 'sendgrid', event_id, applied_at FROM email_event;

-- The pauses and the rate limit stay under the provider's name.
UPDATE job SET queue = 'email', provider = 'sendgrid' WHERE queue = 'sendgrid';

DROP TABLE email;

DROP TABLE email_change;

DROP TABLE email_event;

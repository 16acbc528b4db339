-- When a payment was last read at the provider, or a reading was begun.
ALTER TABLE payment ADD COLUMN read_at BIGINT NOT NULL DEFAULT 0;

-- A payment belongs to its caller: so does the appointment that it excludes others from.
DROP INDEX payment_sole;

CREATE UNIQUE INDEX payment_sole ON payment (caller, appointment_id) WHERE sole = 1 AND rank < 80;

DROP INDEX payment_appointment;

CREATE INDEX payment_appointment ON payment (caller, appointment_id);

-- Payments that are open already get their scheduled reading, too. The payload is empty bytes on both databases.
INSERT INTO job (queue, id, priority, state, due_at, payload, created_at, give_up_at)
SELECT 'stripe', payment_id || '/read/0', 2, 'queued', now_ms(), substr(record, 1, 0), now_ms(), now_ms() + 3024000000
FROM payment WHERE rank < 80 AND intent_id <> '';

-- A cursor is a number and this row's token: a restored database gives the number again, and never the token.
ALTER TABLE payment_change ADD COLUMN token TEXT NOT NULL DEFAULT '';

-- Whose payment it is.
ALTER TABLE payment_change ADD COLUMN caller TEXT NOT NULL DEFAULT '';

CREATE INDEX payment_change_caller ON payment_change (caller, number);

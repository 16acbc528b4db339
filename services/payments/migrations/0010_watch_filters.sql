-- Watches filter by these columns. They are empty in changes that an older version stored.
ALTER TABLE payment_change ADD COLUMN payment_id TEXT NOT NULL DEFAULT '';

ALTER TABLE payment_change ADD COLUMN appointment_id TEXT NOT NULL DEFAULT '';

CREATE INDEX payment_change_payment ON payment_change (payment_id, number);

CREATE INDEX payment_change_appointment ON payment_change (appointment_id, number);

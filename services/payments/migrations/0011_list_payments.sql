-- Lists filter and sort by these columns. `created_at` is epoch milliseconds. The service fills 0 from the record at its
-- start: SQL cannot read the record.
ALTER TABLE payment ADD COLUMN created_at BIGINT NOT NULL DEFAULT 0;

ALTER TABLE payment ADD COLUMN patient_id TEXT NOT NULL DEFAULT '';

CREATE INDEX payment_created ON payment (created_at, payment_id);

CREATE INDEX payment_caller_created ON payment (caller, created_at, payment_id);

-- Each ends with the order of lists, so that one patient's page does not scan all payments of the caller.
CREATE INDEX payment_patient ON payment (caller, patient_id, created_at, payment_id);

DROP INDEX payment_appointment;

CREATE INDEX payment_appointment ON payment (caller, appointment_id, created_at, payment_id);

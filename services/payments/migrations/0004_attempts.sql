-- Epoch seconds at which a later claim of the job asked the provider to create the payment, each after a space. The first
-- claim's time is the job's own. A payment of unknown outcome is looked for around each of them.
ALTER TABLE payment ADD COLUMN attempts TEXT NOT NULL DEFAULT '';

-- What the call or event that led to a change is logged under.
ALTER TABLE payment_change ADD COLUMN correlation_id TEXT NOT NULL DEFAULT '';

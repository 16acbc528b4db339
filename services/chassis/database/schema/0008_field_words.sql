-- The field's words for two names.
ALTER TABLE job RENAME COLUMN give_up_at TO expires_at;
ALTER TABLE pace RENAME TO rate_limit;

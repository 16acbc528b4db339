-- Events that were given up are kept for as long as ids are, and no longer for ever.
UPDATE inbox SET finished_at = now_ms() WHERE outcome = 'DEAD' AND finished_at IS NULL;

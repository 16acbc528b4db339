-- When the pause was asked for, in milliseconds: a clock that stands before it was set back since.
ALTER TABLE pace ADD COLUMN paused_at BIGINT NOT NULL DEFAULT 0;

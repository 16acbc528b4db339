-- The provider that the job's queue chose at the last claim; a lost answer is looked for there.
ALTER TABLE job ADD COLUMN provider TEXT NOT NULL DEFAULT '';

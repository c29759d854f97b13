-- What a label rests on. A candidate failed its source's checks: it is kept with its
-- evidence, but it is no name.
ALTER TABLE labels ADD COLUMN candidate INTEGER NOT NULL DEFAULT 0;
ALTER TABLE labels ADD COLUMN strength REAL;
ALTER TABLE labels ADD COLUMN max_activation REAL;
-- JSON: [[name, number or text], …]; NULL = none.
ALTER TABLE labels ADD COLUMN evidence TEXT;

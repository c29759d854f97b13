-- JSON of how a CAV was trained and what its statistics are; NULL = not trained here.
ALTER TABLE cavs ADD COLUMN training TEXT;

-- Versions of SAEs, and deletions that can be undone.
--
-- A name is that of its newest version that was not deleted. The row of any other version is
-- named `name@digest`; no name that a client gives has an "@".
ALTER TABLE saes ADD COLUMN stored INTEGER NOT NULL DEFAULT 0;
UPDATE saes SET stored = id;
-- Milliseconds since 1970, UTC; NULL = it was not deleted.
ALTER TABLE saes ADD COLUMN deleted_at_ms INTEGER;

-- A version of a CAV is deleted while `deleted_stored` is its `stored`: to store it again brings
-- it back.
ALTER TABLE cavs ADD COLUMN deleted_stored INTEGER;
ALTER TABLE cavs ADD COLUMN deleted_at_ms INTEGER;
CREATE INDEX cavs_deleted ON cavs (deleted_at_ms) WHERE deleted_at_ms IS NOT NULL;

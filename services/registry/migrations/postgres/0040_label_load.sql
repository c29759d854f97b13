-- Labels and their words are written by who holds the SAE's row, and deleted in the
-- transaction that deletes it: there is nothing that the server must look up for each row.
ALTER TABLE labels DROP CONSTRAINT labels_sae_fkey;
ALTER TABLE label_postings DROP CONSTRAINT label_postings_sae_fkey;
-- An import's labels are found among those of its SAE, which are all counted after it anyway.
DROP INDEX labels_import;

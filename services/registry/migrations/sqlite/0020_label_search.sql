-- Labels are found through an index of words that the registry keeps by itself: the
-- dictionary of all words, and per SAE and word the labels that have it. Labels that are
-- there already are indexed when the store is opened.
DROP TRIGGER labels_inserted;
DROP TRIGGER labels_deleted;
DROP TABLE label_words;
DROP TABLE label_parts;
DROP INDEX labels_folded;
CREATE INDEX labels_text ON labels (sae, folded);

-- Words in lower case; ids grow with every word.
CREATE TABLE label_vocabulary (
    id   INTEGER PRIMARY KEY,
    word TEXT    NOT NULL UNIQUE
) STRICT;

CREATE TABLE label_postings (
    sae    INTEGER NOT NULL REFERENCES saes (id) ON DELETE CASCADE,
    word   INTEGER NOT NULL,
    -- Smallest id in `labels`.
    first  INTEGER NOT NULL,
    -- Ids of labels, ascending: distances from one to the next as LEB128. Some may be gone.
    labels BLOB    NOT NULL,
    PRIMARY KEY (sae, word, first)
) STRICT, WITHOUT ROWID;

-- SAEs: metadata only; directions are in the object store under `digest`.
CREATE TABLE saes (
    id                  INTEGER PRIMARY KEY AUTOINCREMENT,
    name                TEXT    NOT NULL UNIQUE,
    digest              TEXT    NOT NULL,
    hook_name           TEXT    NOT NULL,
    model_id            TEXT    NOT NULL,
    d_in                INTEGER NOT NULL,
    d_sae               INTEGER NOT NULL,
    architecture        TEXT    NOT NULL,
    input_normalization TEXT    NOT NULL,
    -- Offset of the first tensor in the object, in bytes.
    data_start          INTEGER NOT NULL,
    format              TEXT    NOT NULL,
    origin              TEXT    NOT NULL,
    -- Milliseconds since 1970, UTC.
    created_at_ms       INTEGER NOT NULL,
    label_count         INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX saes_digest ON saes (digest);

-- One row per label import; labels remember the last one that set them.
CREATE TABLE label_imports (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    sae           INTEGER NOT NULL REFERENCES saes (id) ON DELETE CASCADE,
    created_at_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX label_imports_sae ON label_imports (sae);

CREATE TABLE labels (
    id            INTEGER PRIMARY KEY,
    sae           INTEGER NOT NULL REFERENCES saes (id) ON DELETE CASCADE,
    feature_index INTEGER NOT NULL,
    label         TEXT    NOT NULL,
    -- `label` in lower case (Unicode), for search.
    folded        TEXT    NOT NULL,
    source        TEXT    NOT NULL,
    score         REAL,
    import        INTEGER NOT NULL,
    UNIQUE (sae, feature_index, label, source)
) STRICT;
CREATE INDEX labels_folded ON labels (folded, sae);
CREATE INDEX labels_import ON labels (import);

-- Word prefixes ("hock" in "ice-hockey") and substrings of three letters or more.
CREATE VIRTUAL TABLE label_words USING fts5 (
    folded, content = 'labels', content_rowid = 'id', tokenize = 'unicode61 remove_diacritics 0', prefix = '2 3'
);
CREATE VIRTUAL TABLE label_parts USING fts5 (
    folded, content = 'labels', content_rowid = 'id', tokenize = 'trigram case_sensitive 1'
);
CREATE TRIGGER labels_inserted AFTER INSERT ON labels BEGIN
    INSERT INTO label_words (rowid, folded) VALUES (new.id, new.folded);
    INSERT INTO label_parts (rowid, folded) VALUES (new.id, new.folded);
END;
CREATE TRIGGER labels_deleted AFTER DELETE ON labels BEGIN
    INSERT INTO label_words (label_words, rowid, folded) VALUES ('delete', old.id, old.folded);
    INSERT INTO label_parts (label_parts, rowid, folded) VALUES ('delete', old.id, old.folded);
END;

-- CAV versions. `stored` grows with every store; the largest of a name is its newest.
CREATE TABLE cavs (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    name          TEXT    NOT NULL,
    digest        TEXT    NOT NULL,
    model_id      TEXT    NOT NULL,
    origin        TEXT    NOT NULL,
    created_at_ms INTEGER NOT NULL,
    stored        INTEGER NOT NULL,
    UNIQUE (name, digest)
) STRICT;
CREATE INDEX cavs_newest ON cavs (name, stored);

CREATE TABLE cav_directions (
    cav       INTEGER NOT NULL REFERENCES cavs (id) ON DELETE CASCADE,
    position  INTEGER NOT NULL,
    hook_name TEXT    NOT NULL,
    width     INTEGER NOT NULL,
    norm      REAL    NOT NULL,
    -- Little-endian float32.
    vector    BLOB    NOT NULL,
    PRIMARY KEY (cav, position)
) STRICT, WITHOUT ROWID;

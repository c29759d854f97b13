-- The same tables as in SQLite. Names and texts are ordered by their bytes, as there.

-- SAEs: metadata only; directions are in the object store under `digest`.
CREATE TABLE saes (
    id                  BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name                TEXT COLLATE "C" NOT NULL UNIQUE,
    digest              TEXT COLLATE "C" NOT NULL,
    hook_name           TEXT NOT NULL,
    model_id            TEXT NOT NULL,
    d_in                BIGINT NOT NULL,
    d_sae               BIGINT NOT NULL,
    architecture        TEXT NOT NULL,
    input_normalization TEXT NOT NULL,
    -- Offset of the first tensor in the object, in bytes.
    data_start          BIGINT NOT NULL,
    format              TEXT NOT NULL,
    origin              TEXT NOT NULL,
    -- Milliseconds since 1970, UTC.
    created_at_ms       BIGINT NOT NULL,
    label_count         BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX saes_digest ON saes (digest);

-- One row per label import; labels remember the last one that set them.
CREATE TABLE label_imports (
    id            BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    sae           BIGINT NOT NULL REFERENCES saes (id) ON DELETE CASCADE,
    created_at_ms BIGINT NOT NULL
);
CREATE INDEX label_imports_sae ON label_imports (sae);

CREATE TABLE labels (
    id             BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    sae            BIGINT NOT NULL REFERENCES saes (id) ON DELETE CASCADE,
    feature_index  BIGINT NOT NULL,
    label          TEXT COLLATE "C" NOT NULL,
    -- `label` in lower case (Unicode), for search.
    folded         TEXT COLLATE "C" NOT NULL,
    source         TEXT COLLATE "C" NOT NULL,
    -- Of label and source, which are too long for an index.
    identity       BYTEA NOT NULL,
    score          REAL,
    -- Failed its source's checks: kept with its evidence, but no name.
    candidate      BOOLEAN NOT NULL,
    strength       REAL,
    max_activation REAL,
    -- JSON: [[name, number or text], …]; NULL = none.
    evidence       TEXT,
    import         BIGINT NOT NULL,
    UNIQUE (sae, feature_index, identity)
);
CREATE INDEX labels_text ON labels (sae, left(folded, 256), id);
CREATE INDEX labels_import ON labels (import);

-- Words in lower case; ids grow with every word, in the order of commits.
CREATE TABLE label_vocabulary (
    id   BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    word TEXT COLLATE "C" NOT NULL UNIQUE
);

CREATE TABLE label_postings (
    sae    BIGINT NOT NULL REFERENCES saes (id) ON DELETE CASCADE,
    word   BIGINT NOT NULL,
    -- Smallest id in `labels`.
    first  BIGINT NOT NULL,
    -- Ids of labels, ascending: distances from one to the next as LEB128. Some may be gone.
    labels BYTEA NOT NULL,
    PRIMARY KEY (sae, word, first)
);
ALTER TABLE label_postings ALTER COLUMN labels SET STORAGE EXTERNAL;

-- CAV versions. `stored` grows with every store; the largest of a name is its newest.
CREATE TABLE cavs (
    id            BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name          TEXT COLLATE "C" NOT NULL,
    digest        TEXT COLLATE "C" NOT NULL,
    model_id      TEXT NOT NULL,
    origin        TEXT NOT NULL,
    created_at_ms BIGINT NOT NULL,
    stored        BIGINT NOT NULL UNIQUE,
    -- JSON of how it was trained and what its statistics are; NULL = not trained here.
    training      TEXT,
    UNIQUE (name, digest)
);
CREATE INDEX cavs_newest ON cavs (name, stored);

CREATE TABLE cav_directions (
    cav       BIGINT NOT NULL REFERENCES cavs (id) ON DELETE CASCADE,
    position  BIGINT NOT NULL,
    hook_name TEXT NOT NULL,
    width     BIGINT NOT NULL,
    norm      REAL NOT NULL,
    -- Little-endian float32.
    vector    BYTEA NOT NULL,
    PRIMARY KEY (cav, position)
);
ALTER TABLE cav_directions ALTER COLUMN vector SET STORAGE EXTERNAL;

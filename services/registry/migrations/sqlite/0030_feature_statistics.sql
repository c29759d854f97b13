-- Versions of feature statistics. `stored` grows with every store; the largest of an SAE is
-- the one that is used.
CREATE TABLE statistics_versions (
    id                     INTEGER PRIMARY KEY AUTOINCREMENT,
    sae                    INTEGER NOT NULL REFERENCES saes (id) ON DELETE CASCADE,
    digest                 TEXT    NOT NULL,
    origin                 TEXT    NOT NULL,
    data_digest            TEXT    NOT NULL,
    model_id               TEXT    NOT NULL,
    model_digest           TEXT    NOT NULL,
    max_tokens             INTEGER NOT NULL,
    include_special_tokens INTEGER NOT NULL,
    text_count             INTEGER NOT NULL,
    dropped_count          INTEGER NOT NULL,
    token_count            INTEGER NOT NULL,
    active_feature_count   INTEGER NOT NULL,
    created_at_ms          INTEGER NOT NULL,
    stored                 INTEGER NOT NULL,
    UNIQUE (sae, digest)
) STRICT;
CREATE INDEX statistics_versions_newest ON statistics_versions (sae, stored);

-- Features that fired; one without a row never did.
CREATE TABLE feature_statistics (
    version         INTEGER NOT NULL REFERENCES statistics_versions (id) ON DELETE CASCADE,
    feature_index   INTEGER NOT NULL,
    active_count    INTEGER NOT NULL,
    max_activation  REAL    NOT NULL,
    mean_activation REAL    NOT NULL,
    p50_activation  REAL    NOT NULL,
    p90_activation  REAL    NOT NULL,
    p99_activation  REAL    NOT NULL,
    -- JSON: [[activation, before, token, after], …], strongest first.
    contexts        TEXT    NOT NULL,
    PRIMARY KEY (version, feature_index)
) STRICT, WITHOUT ROWID;

-- Versions of feature statistics. `stored` grows with every store; the largest of an SAE is
-- the one that is used.
CREATE TABLE statistics_versions (
    id                     BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    sae                    BIGINT  NOT NULL REFERENCES saes (id) ON DELETE CASCADE,
    digest                 TEXT COLLATE "C" NOT NULL,
    origin                 TEXT    NOT NULL,
    data_digest            TEXT    NOT NULL,
    model_id               TEXT    NOT NULL,
    model_digest           TEXT    NOT NULL,
    max_tokens             BIGINT  NOT NULL,
    include_special_tokens BOOLEAN NOT NULL,
    text_count             BIGINT  NOT NULL,
    dropped_count          BIGINT  NOT NULL,
    token_count            BIGINT  NOT NULL,
    active_feature_count   BIGINT  NOT NULL,
    created_at_ms          BIGINT  NOT NULL,
    stored                 BIGINT  NOT NULL,
    UNIQUE (sae, digest)
);
CREATE INDEX statistics_versions_newest ON statistics_versions (sae, stored);

-- Features that fired; one without a row never did.
CREATE TABLE feature_statistics (
    version         BIGINT  NOT NULL REFERENCES statistics_versions (id) ON DELETE CASCADE,
    feature_index   BIGINT  NOT NULL,
    active_count    BIGINT  NOT NULL,
    max_activation  REAL    NOT NULL,
    mean_activation REAL    NOT NULL,
    p50_activation  REAL    NOT NULL,
    p90_activation  REAL    NOT NULL,
    p99_activation  REAL    NOT NULL,
    -- JSON: [[activation, before, token, after], …], strongest first.
    contexts        TEXT    NOT NULL,
    PRIMARY KEY (version, feature_index)
);

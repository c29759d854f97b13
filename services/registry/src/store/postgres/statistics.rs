//! Tables `statistics_versions` and `feature_statistics`.

use futures::StreamExt;
use sqlx::{FromRow, PgConnection, Postgres, QueryBuilder, Row, postgres::PgRow};
use steering_proto::feature_statistics::CorpusSource;

use super::{Exclusive, PostgresStore};
use crate::{
    error::{Error, Result},
    statistics::FeatureStatistics,
    store::{
        SaeRecord, StatisticsBatches, StatisticsVersion, WhichStatistics,
        rows::prefix_end,
        statistics::{contexts_from_json, contexts_to_json},
    },
};

/// Rows per INSERT: nine values each, below PostgreSQL's limit of 65,535.
const ROWS_PER_INSERT: usize = 500;
const VERSION: &str = "SELECT id, stored, digest, origin, data_digest, model_id, model_digest, max_tokens, \
                       include_special_tokens, text_count, dropped_count, token_count, \
                       active_feature_count, created_at_ms FROM statistics_versions ";
const FEATURE: &str = "SELECT feature_index, active_count, max_activation, mean_activation, \
                       p50_activation, p90_activation, p99_activation, ";

impl FromRow<'_, PgRow> for StatisticsVersion {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let count = |column: &str| row.try_get::<i64, _>(column).map(i64::unsigned_abs);
        let small = |column: &str| Ok::<_, sqlx::Error>(narrow(count(column)?));
        Ok(Self {
            key: row.try_get("id")?,
            stored: row.try_get("stored")?,
            digest: row.try_get("digest")?,
            source: CorpusSource {
                origin: row.try_get("origin")?,
                data_digest: row.try_get("data_digest")?,
                model_id: row.try_get("model_id")?,
                model_digest: row.try_get("model_digest")?,
                max_tokens: small("max_tokens")?,
            },
            include_special_tokens: row.try_get("include_special_tokens")?,
            text_count: count("text_count")?,
            dropped_count: count("dropped_count")?,
            token_count: count("token_count")?,
            active_feature_count: small("active_feature_count")?,
            created_at_ms: row.try_get("created_at_ms")?,
        })
    }
}

// Written from 32 bits.
fn narrow(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn wide(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// A row of `feature_statistics`.
#[derive(Debug, FromRow)]
struct Feature {
    feature_index: i64,
    active_count: i64,
    max_activation: f32,
    mean_activation: f32,
    p50_activation: f32,
    p90_activation: f32,
    p99_activation: f32,
    contexts: String,
}

impl PostgresStore {
    pub(super) async fn insert_statistics(
        &self,
        sae: &SaeRecord,
        version: &StatisticsVersion,
        mut features: StatisticsBatches<'_>,
    ) -> Result<StatisticsVersion> {
        let mut transaction = self.begin_exclusive(Exclusive::Statistics).await?;
        let id = match touch(&mut transaction, sae, version).await? {
            Some(id) => id,
            None => {
                let id = insert_version(&mut transaction, sae, version).await?;
                while let Some(batch) = features.next().await {
                    for rows in batch?.chunks(ROWS_PER_INSERT) {
                        insert_features(&mut transaction, id, rows).await?;
                    }
                }
                id
            }
        };
        let mut query = QueryBuilder::<Postgres>::new(VERSION);
        query.push("WHERE id = ").push_bind(id);
        let stored = query.build_query_as().fetch_one(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(stored)
    }

    pub(super) async fn page_of_statistics_versions(
        &self,
        sae: i64,
        before: i64,
        limit: u32,
    ) -> Result<Vec<StatisticsVersion>> {
        let mut query = QueryBuilder::<Postgres>::new(VERSION);
        query.push("WHERE sae = ").push_bind(sae);
        query.push(" AND stored < ").push_bind(before);
        query
            .push(" ORDER BY stored DESC LIMIT ")
            .push_bind(i64::from(limit));
        Ok(query.build_query_as().fetch_all(&self.pool).await?)
    }

    pub(super) async fn find_statistics_version(
        &self,
        sae: i64,
        which: WhichStatistics<'_>,
    ) -> Result<Option<StatisticsVersion>> {
        let mut query = QueryBuilder::<Postgres>::new(VERSION);
        query.push("WHERE sae = ").push_bind(sae);
        if let WhichStatistics::Digest(prefix) = which {
            query.push(" AND digest >= ").push_bind(prefix.to_owned());
            query.push(" AND digest < ").push_bind(prefix_end(prefix));
        }
        query.push(" ORDER BY stored DESC LIMIT 1");
        Ok(query.build_query_as().fetch_optional(&self.pool).await?)
    }

    pub(super) async fn find_statistics(
        &self,
        version: i64,
        indices: &[u32],
        with_contexts: bool,
    ) -> Result<Vec<FeatureStatistics>> {
        let indices: Vec<i64> = indices.iter().map(|&index| i64::from(index)).collect();
        let mut query = QueryBuilder::<Postgres>::new(FEATURE);
        query.push(if with_contexts {
            "contexts"
        } else {
            "'[]' AS contexts"
        });
        query
            .push(" FROM feature_statistics WHERE version = ")
            .push_bind(version);
        query
            .push(" AND feature_index = ANY(")
            .push_bind(indices)
            .push(")");
        let rows: Vec<Feature> = query.build_query_as().fetch_all(&self.pool).await?;
        rows.into_iter().map(FeatureStatistics::try_from).collect()
    }

    pub(super) async fn page_of_statistics(
        &self,
        version: i64,
        from: u32,
        limit: u32,
    ) -> Result<Vec<FeatureStatistics>> {
        let mut query = QueryBuilder::<Postgres>::new(FEATURE);
        query
            .push("contexts FROM feature_statistics WHERE version = ")
            .push_bind(version);
        query
            .push(" AND feature_index >= ")
            .push_bind(i64::from(from));
        query
            .push(" ORDER BY feature_index LIMIT ")
            .push_bind(i64::from(limit));
        let rows: Vec<Feature> = query.build_query_as().fetch_all(&self.pool).await?;
        rows.into_iter().map(FeatureStatistics::try_from).collect()
    }

    pub(super) async fn delete_statistics(&self, version: i64) -> Result<bool> {
        let done = sqlx::query("DELETE FROM statistics_versions WHERE id = $1")
            .bind(version)
            .execute(&self.pool)
            .await?;
        Ok(done.rows_affected() > 0)
    }
}

impl TryFrom<Feature> for FeatureStatistics {
    type Error = Error;

    fn try_from(row: Feature) -> Result<Self> {
        Ok(Self {
            feature_index: narrow(row.feature_index.unsigned_abs()),
            active_count: row.active_count.unsigned_abs(),
            max_activation: row.max_activation,
            mean_activation: row.mean_activation,
            percentiles: [row.p50_activation, row.p90_activation, row.p99_activation],
            contexts: contexts_from_json(&row.contexts)?,
        })
    }
}

/// Makes a version that is there already the newest again, and returns its key.
async fn touch(
    connection: &mut PgConnection,
    sae: &SaeRecord,
    version: &StatisticsVersion,
) -> Result<Option<i64>> {
    Ok(sqlx::query_scalar(
        "UPDATE statistics_versions SET stored = (SELECT MAX(stored) + 1 FROM statistics_versions) \
         WHERE sae = $1 AND digest = $2 RETURNING id",
    )
    .bind(sae.key)
    .bind(&version.digest)
    .fetch_optional(connection)
    .await?)
}

async fn insert_version(
    connection: &mut PgConnection,
    sae: &SaeRecord,
    version: &StatisticsVersion,
) -> Result<i64> {
    let StatisticsVersion {
        key: _,
        stored: _,
        digest,
        source:
            CorpusSource {
                origin,
                data_digest,
                model_id,
                model_digest,
                max_tokens,
            },
        include_special_tokens,
        text_count,
        dropped_count,
        token_count,
        active_feature_count,
        created_at_ms,
    } = version;
    let id: Option<i64> = sqlx::query_scalar(
        "INSERT INTO statistics_versions (sae, digest, origin, data_digest, model_id, model_digest, \
         max_tokens, include_special_tokens, text_count, dropped_count, token_count, \
         active_feature_count, created_at_ms, stored) \
         SELECT id, $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, \
         (SELECT COALESCE(MAX(stored), 0) + 1 FROM statistics_versions) FROM saes WHERE id = $13 AND deleted_at_ms IS NULL \
         RETURNING id",
    )
    .bind(digest)
    .bind(origin)
    .bind(data_digest)
    .bind(model_id)
    .bind(model_digest)
    .bind(i64::from(*max_tokens))
    .bind(include_special_tokens)
    .bind(wide(*text_count))
    .bind(wide(*dropped_count))
    .bind(wide(*token_count))
    .bind(i64::from(*active_feature_count))
    .bind(created_at_ms)
    .bind(sae.key)
    .fetch_optional(connection)
    .await?;
    // Deleted since it was looked up.
    id.ok_or_else(|| Error::SaeNotFound {
        sae_id: sae.name.clone(),
        known: Vec::new(),
    })
}

async fn insert_features(
    connection: &mut PgConnection,
    version: i64,
    rows: &[FeatureStatistics],
) -> Result<()> {
    let contexts = rows.iter().map(|row| contexts_to_json(&row.contexts));
    let contexts = contexts.collect::<Result<Vec<_>>>()?;
    let mut query = QueryBuilder::<Postgres>::new(
        "INSERT INTO feature_statistics (version, feature_index, active_count, max_activation, \
         mean_activation, p50_activation, p90_activation, p99_activation, contexts) ",
    );
    query.push_values(rows.iter().zip(contexts), |mut values, (row, contexts)| {
        let [p50, p90, p99] = row.percentiles;
        values
            .push_bind(version)
            .push_bind(i64::from(row.feature_index))
            .push_bind(wide(row.active_count))
            .push_bind(row.max_activation)
            .push_bind(row.mean_activation)
            .push_bind(p50)
            .push_bind(p90)
            .push_bind(p99)
            .push_bind(contexts);
    });
    query.build().execute(connection).await?;
    Ok(())
}

//! Tables `statistics_versions` and `feature_statistics`.

use futures::StreamExt;
use sqlx::{FromRow, QueryBuilder, Row, Sqlite, SqliteConnection, sqlite::SqliteRow};
use steering_proto::feature_statistics::CorpusSource;

use super::{RESULT_WAIT, SqliteStore, WRITE_WAIT};
use crate::{
    error::{Error, Result},
    statistics::FeatureStatistics,
    store::{
        SaeRecord, StatisticsBatches, StatisticsVersion, WhichStatistics,
        rows::prefix_end,
        statistics::{contexts_from_json, contexts_to_json},
    },
};

/// Rows per INSERT: nine values each, well below SQLite's limit of 32,766.
const ROWS_PER_INSERT: usize = 500;
const VERSION: &str = "SELECT id, stored, digest, origin, data_digest, model_id, model_digest, max_tokens, \
                       include_special_tokens, text_count, dropped_count, token_count, \
                       active_feature_count, created_at_ms FROM statistics_versions ";
const FEATURE: &str = "SELECT feature_index, active_count, max_activation, mean_activation, \
                       p50_activation, p90_activation, p99_activation, ";

impl FromRow<'_, SqliteRow> for StatisticsVersion {
    fn from_row(row: &SqliteRow) -> sqlx::Result<Self> {
        let count = |column: &str| row.try_get::<i64, _>(column).map(i64::unsigned_abs);
        Ok(Self {
            key: row.try_get("id")?,
            stored: row.try_get("stored")?,
            digest: row.try_get("digest")?,
            source: CorpusSource {
                origin: row.try_get("origin")?,
                data_digest: row.try_get("data_digest")?,
                model_id: row.try_get("model_id")?,
                model_digest: row.try_get("model_digest")?,
                max_tokens: row.try_get("max_tokens")?,
            },
            include_special_tokens: row.try_get("include_special_tokens")?,
            text_count: count("text_count")?,
            dropped_count: count("dropped_count")?,
            token_count: count("token_count")?,
            active_feature_count: row.try_get("active_feature_count")?,
            created_at_ms: row.try_get("created_at_ms")?,
        })
    }
}

/// A row of `feature_statistics`.
#[derive(Debug, FromRow)]
struct Feature {
    feature_index: u32,
    active_count: i64,
    max_activation: f32,
    mean_activation: f32,
    p50_activation: f32,
    p90_activation: f32,
    p99_activation: f32,
    contexts: String,
}

impl SqliteStore {
    pub(super) async fn insert_statistics(
        &self,
        sae: &SaeRecord,
        version: &StatisticsVersion,
        mut features: StatisticsBatches<'_>,
    ) -> Result<StatisticsVersion> {
        let mut transaction = self.begin(RESULT_WAIT).await?;
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
        let mut query = QueryBuilder::<Sqlite>::new(VERSION);
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
        let mut query = QueryBuilder::<Sqlite>::new(VERSION);
        query.push("WHERE sae = ").push_bind(sae);
        query.push(" AND stored < ").push_bind(before);
        query.push(" ORDER BY stored DESC LIMIT ").push_bind(limit);
        Ok(query.build_query_as().fetch_all(&self.readers).await?)
    }

    pub(super) async fn find_statistics_version(
        &self,
        sae: i64,
        which: WhichStatistics<'_>,
    ) -> Result<Option<StatisticsVersion>> {
        let mut query = QueryBuilder::<Sqlite>::new(VERSION);
        query.push("WHERE sae = ").push_bind(sae);
        if let WhichStatistics::Digest(prefix) = which {
            query.push(" AND digest >= ").push_bind(prefix.to_owned());
            query.push(" AND digest < ").push_bind(prefix_end(prefix));
        }
        query.push(" ORDER BY stored DESC LIMIT 1");
        Ok(query.build_query_as().fetch_optional(&self.readers).await?)
    }

    pub(super) async fn find_statistics(
        &self,
        version: i64,
        indices: &[u32],
        with_contexts: bool,
    ) -> Result<Vec<FeatureStatistics>> {
        let indices = serde_json::to_string(indices).unwrap_or_default();
        let mut query = QueryBuilder::<Sqlite>::new(FEATURE);
        query.push(if with_contexts {
            "contexts"
        } else {
            "'[]' AS contexts"
        });
        query
            .push(" FROM feature_statistics WHERE version = ")
            .push_bind(version);
        query
            .push(" AND feature_index IN (SELECT value FROM json_each(")
            .push_bind(indices)
            .push("))");
        let rows: Vec<Feature> = query.build_query_as().fetch_all(&self.readers).await?;
        rows.into_iter().map(FeatureStatistics::try_from).collect()
    }

    pub(super) async fn page_of_statistics(
        &self,
        version: i64,
        from: u32,
        limit: u32,
    ) -> Result<Vec<FeatureStatistics>> {
        let mut query = QueryBuilder::<Sqlite>::new(FEATURE);
        query
            .push("contexts FROM feature_statistics WHERE version = ")
            .push_bind(version);
        query.push(" AND feature_index >= ").push_bind(from);
        query
            .push(" ORDER BY feature_index LIMIT ")
            .push_bind(limit);
        let rows: Vec<Feature> = query.build_query_as().fetch_all(&self.readers).await?;
        rows.into_iter().map(FeatureStatistics::try_from).collect()
    }

    pub(super) async fn delete_statistics(&self, version: i64) -> Result<bool> {
        let mut transaction = self.begin(WRITE_WAIT).await?;
        let done = sqlx::query("DELETE FROM statistics_versions WHERE id = ?")
            .bind(version)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(done.rows_affected() > 0)
    }
}

impl TryFrom<Feature> for FeatureStatistics {
    type Error = Error;

    fn try_from(row: Feature) -> Result<Self> {
        Ok(Self {
            feature_index: row.feature_index,
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
    connection: &mut SqliteConnection,
    sae: &SaeRecord,
    version: &StatisticsVersion,
) -> Result<Option<i64>> {
    Ok(sqlx::query_scalar(
        "UPDATE statistics_versions SET stored = (SELECT MAX(stored) + 1 FROM statistics_versions) \
         WHERE sae = ? AND digest = ? RETURNING id",
    )
    .bind(sae.key)
    .bind(&version.digest)
    .fetch_optional(connection)
    .await?)
}

async fn insert_version(
    connection: &mut SqliteConnection,
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
    let signed = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let id: Option<i64> = sqlx::query_scalar(
        "INSERT INTO statistics_versions (sae, digest, origin, data_digest, model_id, model_digest, \
         max_tokens, include_special_tokens, text_count, dropped_count, token_count, \
         active_feature_count, created_at_ms, stored) \
         SELECT id, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, \
         (SELECT COALESCE(MAX(stored), 0) + 1 FROM statistics_versions) FROM saes WHERE id = ? AND deleted_at_ms IS NULL \
         RETURNING id",
    )
    .bind(digest)
    .bind(origin)
    .bind(data_digest)
    .bind(model_id)
    .bind(model_digest)
    .bind(max_tokens)
    .bind(include_special_tokens)
    .bind(signed(*text_count))
    .bind(signed(*dropped_count))
    .bind(signed(*token_count))
    .bind(active_feature_count)
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
    connection: &mut SqliteConnection,
    version: i64,
    rows: &[FeatureStatistics],
) -> Result<()> {
    let contexts = rows.iter().map(|row| contexts_to_json(&row.contexts));
    let contexts = contexts.collect::<Result<Vec<_>>>()?;
    let mut query = QueryBuilder::<Sqlite>::new(
        "INSERT INTO feature_statistics (version, feature_index, active_count, max_activation, \
         mean_activation, p50_activation, p90_activation, p99_activation, contexts) ",
    );
    query.push_values(rows.iter().zip(contexts), |mut values, (row, contexts)| {
        let [p50, p90, p99] = row.percentiles;
        values
            .push_bind(version)
            .push_bind(row.feature_index)
            .push_bind(i64::try_from(row.active_count).unwrap_or(i64::MAX))
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

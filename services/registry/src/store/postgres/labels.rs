//! Table `labels`.

use std::collections::HashMap;

use futures::StreamExt;
use sha2::{Digest, Sha256};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::{
    PostgresStore,
    search::{labels, select_labels},
    words::index_words,
};
use crate::{
    error::{Error, Result},
    store::{
        FeatureNotes, LabelBatches, LabelCounts, LabelPage, LabelRecord, NewLabel, SaeRecord,
        now_ms,
        rows::{ambiguous, evidence_text, feature_index, prefix_end},
    },
};

/// Labels compared with a label that was not found.
const CANDIDATES_MAX: i64 = 5_000;
/// Characters by which a mistyped label may be longer or shorter.
const CANDIDATE_LENGTH_DIFFERENCE: i32 = 3;

impl PostgresStore {
    pub(super) async fn insert_labels(
        &self,
        sae: &SaeRecord,
        mut labels: LabelBatches<'_>,
        unique_names: bool,
    ) -> Result<LabelCounts> {
        let mut transaction = self.begin_result().await?;
        let found: Option<i64> = sqlx::query_scalar(
            "SELECT id FROM saes WHERE id = $1 AND deleted_at_ms IS NULL FOR NO KEY UPDATE",
        )
        .bind(sae.key)
        .fetch_optional(&mut *transaction)
        .await?;
        if found.is_none() {
            // Deleted since it was looked up.
            return Err(Error::SaeNotFound {
                sae_id: sae.name.clone(),
                known: Vec::new(),
            });
        }
        let import: i64 = sqlx::query_scalar(
            "INSERT INTO label_imports (sae, created_at_ms) VALUES ($1, $2) RETURNING id",
        )
        .bind(sae.key)
        .bind(now_ms())
        .fetch_one(&mut *transaction)
        .await?;
        // New labels get larger ids.
        let last: i64 = sqlx::query_scalar("SELECT COALESCE(MAX(id), 0) FROM labels")
            .fetch_one(&mut *transaction)
            .await?;
        // Whether none was there already, so far.
        let mut all_new = true;
        while let Some(batch) = labels.next().await {
            let batch = batch?;
            let rows = last_of_each(&batch);
            all_new = all_new && insert_new(&mut transaction, sae.key, import, &rows).await?;
            if !all_new {
                insert(&mut transaction, sae.key, import, &rows, OR_UPDATE).await?;
            }
        }
        if unique_names {
            refuse_ambiguous(&mut transaction, sae.key, import).await?;
            remove_superseded(&mut transaction, sae.key, import).await?;
        }
        let (labels, features, candidates): (i64, i64, i64) = sqlx::query_as(
            "SELECT COUNT(*) FILTER (WHERE NOT candidate), \
             COUNT(DISTINCT feature_index) FILTER (WHERE NOT candidate), \
             COUNT(*) FILTER (WHERE candidate) FROM labels WHERE sae = $1 AND import = $2",
        )
        .bind(sae.key)
        .bind(import)
        .fetch_one(&mut *transaction)
        .await?;
        index_words(&mut transaction, sae.key, last).await?;
        sqlx::query("UPDATE saes SET label_count = (SELECT COUNT(*) FROM labels WHERE sae = saes.id AND NOT candidate) WHERE id = $1")
            .bind(sae.key)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(LabelCounts {
            labels: labels.unsigned_abs(),
            features: features.unsigned_abs(),
            candidates: candidates.unsigned_abs(),
        })
    }

    pub(super) async fn find_label(
        &self,
        sae: i64,
        label: &str,
        candidate: bool,
        limit: u32,
    ) -> Result<Vec<u32>> {
        let found: Vec<i64> = sqlx::query_scalar(
            "SELECT DISTINCT feature_index FROM labels WHERE sae = $1 \
             AND left(folded, 256) = left($2, 256) AND label = $3 AND candidate = $4 \
             ORDER BY feature_index LIMIT $5",
        )
        .bind(sae)
        .bind(label.to_lowercase())
        .bind(label)
        .bind(candidate)
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await?;
        found.into_iter().map(feature_index).collect()
    }

    pub(super) async fn find_notes(
        &self,
        sae: i64,
        indices: &[u32],
    ) -> Result<HashMap<u32, FeatureNotes>> {
        let indices: Vec<i64> = indices.iter().copied().map(i64::from).collect();
        let rows: Vec<(i64, Option<String>, Option<f32>)> = sqlx::query_as(
            "SELECT i, \
             (SELECT label FROM labels WHERE sae = $1 AND feature_index = i AND NOT candidate \
             ORDER BY source = 'manual' DESC, score DESC NULLS LAST, id LIMIT 1), \
             (SELECT max_activation FROM labels WHERE sae = $1 AND feature_index = i \
             AND max_activation IS NOT NULL \
             ORDER BY candidate, source = 'manual' DESC, score DESC NULLS LAST, id LIMIT 1) \
             FROM UNNEST($2::bigint[]) i",
        )
        .bind(sae)
        .bind(indices)
        .fetch_all(&self.pool)
        .await?;
        let notes = rows.into_iter().map(|(index, label, max_activation)| {
            let notes = FeatureNotes {
                label,
                max_activation,
            };
            Ok((feature_index(index)?, notes))
        });
        notes.collect()
    }

    /// Labels with the same beginning and about the same length, then any: enough to find
    /// a typing error. At most two times [`CANDIDATES_MAX`].
    pub(super) async fn find_candidates(&self, sae: i64, label: &str) -> Result<Vec<String>> {
        let folded = label.to_lowercase();
        let start: String = folded.chars().take(2).collect();
        let length = i32::try_from(folded.chars().count()).unwrap_or(i32::MAX);
        Ok(sqlx::query_scalar(
            "(SELECT label FROM labels WHERE sae = $1 AND left(folded, 256) >= $2 \
             AND left(folded, 256) < $3 AND NOT candidate AND abs(length(folded) - $4) <= $5 LIMIT $6) \
             UNION (SELECT label FROM labels WHERE sae = $1 AND NOT candidate LIMIT $6)",
        )
        .bind(sae)
        .bind(&start)
        .bind(prefix_end(&start))
        .bind(length)
        .bind(CANDIDATE_LENGTH_DIFFERENCE)
        .bind(CANDIDATES_MAX)
        .fetch_all(&self.pool)
        .await?)
    }

    pub(super) async fn page_of_labels(&self, page: LabelPage<'_>) -> Result<Vec<LabelRecord>> {
        let (index, key) = page.after;
        let mut query = select_labels("labels l JOIN saes s ON s.id = l.sae ");
        query.push("WHERE l.sae = ").push_bind(page.sae);
        query.push(" AND l.feature_index >= ").push_bind(index);
        query
            .push(" AND (l.feature_index, l.id) > (")
            .push_bind(index)
            .push(", ")
            .push_bind(key)
            .push(")");
        if let Some(feature_index) = page.feature_index {
            query
                .push(" AND l.feature_index = ")
                .push_bind(i64::from(feature_index));
        }
        if let Some(source) = page.source {
            query.push(" AND l.source = ").push_bind(source);
        }
        if !page.candidates {
            query.push(" AND NOT l.candidate");
        }
        query
            .push(" ORDER BY l.feature_index, l.id LIMIT ")
            .push_bind(i64::from(page.limit));
        labels(&self.pool, query).await
    }
}

/// A label that comes twice is stored as it comes last; one statement must not have both.
fn last_of_each(rows: &[NewLabel]) -> Vec<&NewLabel> {
    let key = |row: &&NewLabel| (row.feature_index, row.label.clone(), row.source.clone());
    let last: HashMap<_, usize> = (0..).zip(rows).map(|(i, row)| (key(&row), i)).collect();
    let mut places: Vec<usize> = last.into_values().collect();
    places.sort_unstable();
    places.into_iter().map(|i| &rows[i]).collect()
}

/// Inserts all rows, or none if one is there already; which of both. Not to look first
/// makes it a quarter faster.
async fn insert_new(
    connection: &mut PgConnection,
    sae: i64,
    import: i64,
    rows: &[&NewLabel],
) -> Result<bool> {
    let mut savepoint = connection.begin().await?;
    match insert(&mut savepoint, sae, import, rows, "").await {
        Ok(()) => savepoint.commit().await?,
        Err(sqlx::Error::Database(error)) if error.is_unique_violation() => {
            savepoint.rollback().await?;
            return Ok(false);
        }
        Err(error) => return Err(error.into()),
    }
    Ok(true)
}

/// What is done with a label that is there already.
const OR_UPDATE: &str = " ON CONFLICT (sae, feature_index, identity) \
     DO UPDATE SET score = excluded.score, candidate = excluded.candidate, \
     strength = excluded.strength, max_activation = excluded.max_activation, \
     evidence = excluded.evidence, import = excluded.import";

async fn insert(
    connection: &mut PgConnection,
    sae: i64,
    import: i64,
    rows: &[&NewLabel],
    on_conflict: &'static str,
) -> sqlx::Result<()> {
    fn column<'a, T>(rows: &[&'a NewLabel], value: impl Fn(&'a NewLabel) -> T) -> Vec<T> {
        rows.iter().map(|row| value(row)).collect()
    }
    sqlx::query(AssertSqlSafe(format!(
        "INSERT INTO labels (sae, import, feature_index, label, folded, source, identity, score, \
         candidate, strength, max_activation, evidence) \
         SELECT $1, $2, * FROM UNNEST($3::bigint[], $4::text[], $5::text[], $6::text[], $7::bytea[], \
         $8::real[], $9::boolean[], $10::real[], $11::real[], $12::text[]){on_conflict}"
    )))
    .bind(sae)
    .bind(import)
    .bind(column(rows, |row| i64::from(row.feature_index)))
    .bind(column(rows, |row| row.label.as_str()))
    .bind(column(rows, |row| row.label.to_lowercase()))
    .bind(column(rows, |row| row.source.as_str()))
    .bind(column(rows, identity))
    .bind(column(rows, |row| row.facts.score))
    .bind(column(rows, |row| row.facts.candidate))
    .bind(column(rows, |row| row.facts.strength))
    .bind(column(rows, |row| row.facts.max_activation))
    .bind(column(rows, |row| evidence_text(&row.facts.evidence)))
    .execute(connection)
    .await?;
    Ok(())
}

/// Column `identity`: the half of a SHA-256.
fn identity(row: &NewLabel) -> Vec<u8> {
    let mut hasher = Sha256::new();
    hasher.update((row.label.len() as u64).to_le_bytes());
    hasher.update(&row.label);
    hasher.update(&row.source);
    hasher.finalize()[..16].to_vec()
}

/// A name that stands for two features would be resolved to either.
async fn refuse_ambiguous(connection: &mut PgConnection, sae: i64, import: i64) -> Result<()> {
    let found = sqlx::query_as(
        "SELECT label, MIN(feature_index), MAX(feature_index) FROM labels \
         WHERE sae = $1 AND import = $2 AND NOT candidate GROUP BY label, source \
         HAVING COUNT(DISTINCT feature_index) > 1 LIMIT 1",
    )
    .bind(sae)
    .bind(import)
    .fetch_optional(connection)
    .await?;
    ambiguous(found)
}

/// A name given anew leaves the feature it named before.
async fn remove_superseded(connection: &mut PgConnection, sae: i64, import: i64) -> Result<()> {
    sqlx::query(
        "DELETE FROM labels old USING labels new WHERE new.import = $1 AND new.sae = $2 AND old.sae = $2 \
         AND left(old.folded, 256) = left(new.folded, 256) AND old.label = new.label \
         AND old.source = new.source AND old.import <> new.import \
         AND (old.candidate OR NOT new.candidate)",
    )
    .bind(import)
    .bind(sae)
    .execute(connection)
    .await?;
    Ok(())
}

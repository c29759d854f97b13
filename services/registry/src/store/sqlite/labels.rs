//! Table `labels`.

use std::collections::HashMap;

use futures::StreamExt;
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};

use super::{
    RESULT_WAIT, SqliteStore, json,
    search::{labels, select_labels},
    words::index_words,
};
use crate::{
    error::{Error, Result},
    store::{
        FeatureNotes, LabelBatches, LabelCounts, LabelPage, LabelRecord, NewLabel, SaeRecord,
        now_ms,
        rows::{ambiguous, evidence_text, prefix_end},
    },
};

/// Rows per INSERT: eleven values each, well below SQLite's limit of 32,766.
const ROWS_PER_INSERT: usize = 500;
/// Labels compared with a label that was not found.
const CANDIDATES_MAX: u32 = 5_000;
/// Characters by which a mistyped label may be longer or shorter.
const CANDIDATE_LENGTH_DIFFERENCE: u32 = 3;

impl SqliteStore {
    pub(super) async fn insert_labels(
        &self,
        sae: &SaeRecord,
        mut labels: LabelBatches<'_>,
        unique_names: bool,
    ) -> Result<LabelCounts> {
        let mut transaction = self.begin(RESULT_WAIT).await?;
        let import: Option<i64> = sqlx::query_scalar(
            "INSERT INTO label_imports (sae, created_at_ms) SELECT id, ? FROM saes WHERE id = ? \
             AND deleted_at_ms IS NULL RETURNING id",
        )
        .bind(now_ms())
        .bind(sae.key)
        .fetch_optional(&mut *transaction)
        .await?;
        // Deleted since it was looked up.
        let import = import.ok_or_else(|| Error::SaeNotFound {
            sae_id: sae.name.clone(),
            known: Vec::new(),
        })?;
        // New labels get larger ids.
        let last: i64 = sqlx::query_scalar("SELECT COALESCE(MAX(id), 0) FROM labels")
            .fetch_one(&mut *transaction)
            .await?;
        while let Some(batch) = labels.next().await {
            for rows in batch?.chunks(ROWS_PER_INSERT) {
                insert(&mut transaction, sae.key, import, rows).await?;
            }
        }
        if unique_names {
            refuse_ambiguous(&mut transaction, import).await?;
            remove_superseded(&mut transaction, import).await?;
        }
        let (labels, features, candidates): (i64, i64, i64) = sqlx::query_as(
            "SELECT COUNT(*) FILTER (WHERE NOT candidate), \
             COUNT(DISTINCT feature_index) FILTER (WHERE NOT candidate), \
             COUNT(*) FILTER (WHERE candidate) FROM labels WHERE import = ?",
        )
        .bind(import)
        .fetch_one(&mut *transaction)
        .await?;
        index_words(&mut transaction, sae.key, last).await?;
        sqlx::query("UPDATE saes SET label_count = (SELECT COUNT(*) FROM labels WHERE sae = saes.id AND NOT candidate) WHERE id = ?")
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
        Ok(sqlx::query_scalar(
            "SELECT DISTINCT feature_index FROM labels INDEXED BY labels_text WHERE sae = ? AND folded = ? AND label = ? \
             AND candidate = ? ORDER BY feature_index LIMIT ? + 0",
        )
        .bind(sae)
        .bind(label.to_lowercase())
        .bind(label)
        .bind(candidate)
        .bind(limit)
        .fetch_all(&self.readers)
        .await?)
    }

    pub(super) async fn find_notes(
        &self,
        sae: i64,
        indices: &[u32],
    ) -> Result<HashMap<u32, FeatureNotes>> {
        let rows: Vec<(u32, Option<String>, Option<f32>)> = sqlx::query_as(
            "SELECT i.value, \
             (SELECT label FROM labels WHERE sae = ?1 AND feature_index = i.value AND NOT candidate \
             ORDER BY source = 'manual' DESC, score DESC NULLS LAST, id LIMIT 1), \
             (SELECT max_activation FROM labels WHERE sae = ?1 AND feature_index = i.value \
             AND max_activation IS NOT NULL \
             ORDER BY candidate, source = 'manual' DESC, score DESC NULLS LAST, id LIMIT 1) \
             FROM json_each(?2) i",
        )
        .bind(sae)
        .bind(json(indices))
        .fetch_all(&self.readers)
        .await?;
        let notes = rows.into_iter().map(|(index, label, max_activation)| {
            let notes = FeatureNotes {
                label,
                max_activation,
            };
            (index, notes)
        });
        Ok(notes.collect())
    }

    /// Labels with the same beginning and about the same length, then any:
    /// enough to find a typing error. At most two times [`CANDIDATES_MAX`].
    ///
    /// Without the length, the first labels in alphabetical order would fill
    /// the bound: "labl 7" would meet "label 1000", never "label 7".
    pub(super) async fn find_candidates(&self, sae: i64, label: &str) -> Result<Vec<String>> {
        let folded = label.to_lowercase();
        let start: String = folded.chars().take(2).collect();
        let length = i64::try_from(folded.chars().count()).unwrap_or(i64::MAX);
        Ok(sqlx::query_scalar(
            "SELECT label FROM (SELECT label FROM labels INDEXED BY labels_text \
             WHERE folded >= ?1 AND folded < ?2 AND sae = ?3 AND NOT candidate AND abs(length(folded) - ?5) <= ?6 LIMIT ?4) \
             UNION SELECT label FROM (SELECT label FROM labels WHERE sae = ?3 AND NOT candidate LIMIT ?4)",
        )
        .bind(&start)
        .bind(prefix_end(&start))
        .bind(sae)
        .bind(CANDIDATES_MAX)
        .bind(length)
        .bind(CANDIDATE_LENGTH_DIFFERENCE)
        .fetch_all(&self.readers)
        .await?)
    }

    pub(super) async fn page_of_labels(&self, page: LabelPage<'_>) -> Result<Vec<LabelRecord>> {
        let (index, key) = page.after;
        let mut query = select_labels("labels l CROSS JOIN saes s ON s.id = l.sae ");
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
                .push_bind(feature_index);
        }
        if let Some(source) = page.source {
            query.push(" AND l.source = ").push_bind(source);
        }
        if !page.candidates {
            query.push(" AND NOT l.candidate");
        }
        query
            .push(" ORDER BY l.feature_index, l.id LIMIT ")
            .push_bind(page.limit)
            .push(" + 0");
        labels(&self.readers, query).await
    }
}

async fn insert(
    connection: &mut SqliteConnection,
    sae: i64,
    import: i64,
    rows: &[NewLabel],
) -> Result<()> {
    let mut query = QueryBuilder::<Sqlite>::new(
        "INSERT INTO labels (sae, feature_index, label, folded, source, score, candidate, strength, \
         max_activation, evidence, import) ",
    );
    query.push_values(rows, |mut values, row| {
        values
            .push_bind(sae)
            .push_bind(row.feature_index)
            .push_bind(&row.label)
            .push_bind(row.label.to_lowercase())
            .push_bind(&row.source)
            .push_bind(row.facts.score)
            .push_bind(row.facts.candidate)
            .push_bind(row.facts.strength)
            .push_bind(row.facts.max_activation)
            .push_bind(evidence_text(&row.facts.evidence))
            .push_bind(import);
    });
    query.push(
        " ON CONFLICT (sae, feature_index, label, source) \
         DO UPDATE SET score = excluded.score, candidate = excluded.candidate, \
         strength = excluded.strength, max_activation = excluded.max_activation, \
         evidence = excluded.evidence, import = excluded.import",
    );
    query.build().execute(connection).await?;
    Ok(())
}

/// A name that stands for two features would be resolved to either.
async fn refuse_ambiguous(connection: &mut SqliteConnection, import: i64) -> Result<()> {
    let found: Option<(String, i64, i64)> = sqlx::query_as(
        "SELECT a.label, a.feature_index, b.feature_index FROM labels a INDEXED BY labels_import \
         CROSS JOIN labels b INDEXED BY labels_text \
         ON b.sae = a.sae AND b.folded = a.folded AND b.label = a.label AND b.source = a.source \
         AND b.import = a.import AND b.feature_index > a.feature_index AND NOT b.candidate \
         WHERE a.import = ? AND NOT a.candidate LIMIT 1",
    )
    .bind(import)
    .fetch_optional(connection)
    .await?;
    ambiguous(found)
}

/// A name given anew leaves the feature it named before.
async fn remove_superseded(connection: &mut SqliteConnection, import: i64) -> Result<()> {
    sqlx::query(
        "DELETE FROM labels WHERE id IN (SELECT old.id FROM labels new INDEXED BY labels_import \
         CROSS JOIN labels old INDEXED BY labels_text \
         ON old.sae = new.sae AND old.folded = new.folded AND old.label = new.label \
         AND old.source = new.source AND old.import <> new.import \
         AND (old.candidate OR NOT new.candidate) WHERE new.import = ?)",
    )
    .bind(import)
    .execute(connection)
    .await?;
    Ok(())
}

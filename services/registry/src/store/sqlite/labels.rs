//! Tables `labels` and its search indexes.

use std::collections::HashMap;

use futures::StreamExt;
use sqlx::{FromRow, QueryBuilder, Row, Sqlite, SqliteConnection, sqlite::SqliteRow};
use steering_proto::Invalid;

use super::{SqliteStore, prefix_end};
use crate::{
    error::{Error, Result},
    store::{
        Evidence, FeatureNotes, LabelBatches, LabelCounts, LabelFacts, LabelPage, LabelRecord,
        LabelSearch, Match, NewLabel, SaeRecord, now_ms,
    },
};

/// Rows per INSERT: eleven values each, well below SQLite's limit of 32,766.
const ROWS_PER_INSERT: usize = 500;
/// Labels compared with a label that was not found.
const CANDIDATES_MAX: u32 = 5_000;
/// Characters by which a mistyped label may be longer or shorter.
const CANDIDATE_LENGTH_DIFFERENCE: u32 = 3;

impl FromRow<'_, SqliteRow> for LabelRecord {
    fn from_row(row: &SqliteRow) -> sqlx::Result<Self> {
        Ok(Self {
            key: row.try_get("id")?,
            sae_id: row.try_get("sae_name")?,
            feature_index: row.try_get("feature_index")?,
            label: row.try_get("label")?,
            folded: row.try_get("folded")?,
            source: row.try_get("source")?,
            facts: LabelFacts {
                score: row.try_get("score")?,
                candidate: row.try_get("candidate")?,
                strength: row.try_get("strength")?,
                max_activation: row.try_get("max_activation")?,
                evidence: evidence(row.try_get("evidence")?)?,
            },
        })
    }
}

/// Reads the column `evidence`.
fn evidence(json: Option<&str>) -> sqlx::Result<Vec<Evidence>> {
    let evidence = json.map(serde_json::from_str).transpose();
    Ok(evidence
        .map_err(|error| sqlx::Error::Decode(error.into()))?
        .unwrap_or_default())
}

/// Statistics are never gathered, so the planner would take `sae = ?` for a
/// good filter; where the text is the better one, its index is named, and where
/// another table comes first, CROSS JOIN keeps it there.
const BY_TEXT: &str = "labels l INDEXED BY labels_folded CROSS JOIN saes s ON s.id = l.sae ";
const BY_WORDS: &str =
    "label_words w CROSS JOIN labels l ON l.id = w.rowid CROSS JOIN saes s ON s.id = l.sae ";
const BY_PARTS: &str =
    "label_parts p CROSS JOIN labels l ON l.id = p.rowid CROSS JOIN saes s ON s.id = l.sae ";
const BY_FEATURE: &str = "labels l CROSS JOIN saes s ON s.id = l.sae ";

fn select(from: &str) -> QueryBuilder<Sqlite> {
    let mut query = QueryBuilder::new(
        "SELECT l.id, s.name AS sae_name, l.feature_index, l.label, l.folded, l.source, l.score, \
         l.candidate, l.strength, l.max_activation, l.evidence FROM ",
    );
    query.push(from);
    query
}

impl SqliteStore {
    pub(super) async fn insert_labels(
        &self,
        sae: &SaeRecord,
        mut labels: LabelBatches<'_>,
        unique_names: bool,
    ) -> Result<LabelCounts> {
        let mut transaction = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        let import: Option<i64> = sqlx::query_scalar(
            "INSERT INTO label_imports (sae, created_at_ms) SELECT id, ? FROM saes WHERE id = ? RETURNING id",
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
            "SELECT DISTINCT feature_index FROM labels INDEXED BY labels_folded WHERE folded = ? AND sae = ? AND label = ? \
             AND candidate = ? ORDER BY feature_index LIMIT ?",
        )
        .bind(label.to_lowercase())
        .bind(sae)
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
        let indices = serde_json::to_string(indices).unwrap_or_default();
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
        .bind(indices)
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
            "SELECT label FROM (SELECT label FROM labels INDEXED BY labels_folded \
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

    pub(super) async fn find_labels(&self, search: LabelSearch<'_>) -> Result<Vec<LabelRecord>> {
        let Some(mut query) = search_query(&search) else {
            return Ok(Vec::new());
        };
        query.push(" AND NOT l.candidate");
        if let Some(sae) = search.sae {
            query.push(" AND l.sae = ").push_bind(sae);
        }
        query.push(match search.kind {
            Match::Exact | Match::Prefix => " ORDER BY l.folded, l.id LIMIT ",
            Match::Words => " ORDER BY w.rowid LIMIT ",
            Match::Part => " ORDER BY p.rowid LIMIT ",
        });
        query.push_bind(search.limit);
        Ok(query.build_query_as().fetch_all(&self.readers).await?)
    }

    pub(super) async fn page_of_labels(&self, page: LabelPage<'_>) -> Result<Vec<LabelRecord>> {
        let (index, key) = page.after;
        let mut query = select(BY_FEATURE);
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
            .push_bind(page.limit);
        Ok(query.build_query_as().fetch_all(&self.readers).await?)
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

/// Writes the column `evidence`.
fn evidence_text(evidence: &[Evidence]) -> Option<String> {
    let json = || serde_json::to_string(evidence).ok();
    (!evidence.is_empty()).then(json).flatten()
}

/// A name that stands for two features would be resolved to either.
async fn refuse_ambiguous(connection: &mut SqliteConnection, import: i64) -> Result<()> {
    let ambiguous: Option<(String, u32, u32)> = sqlx::query_as(
        "SELECT a.label, a.feature_index, b.feature_index FROM labels a INDEXED BY labels_import \
         CROSS JOIN labels b INDEXED BY labels_folded \
         ON b.folded = a.folded AND b.sae = a.sae AND b.label = a.label AND b.source = a.source \
         AND b.import = a.import AND b.feature_index > a.feature_index AND NOT b.candidate \
         WHERE a.import = ? AND NOT a.candidate LIMIT 1",
    )
    .bind(import)
    .fetch_optional(connection)
    .await?;
    match ambiguous {
        None => Ok(()),
        Some((label, one, other)) => Err(Invalid::field(
            "chunk",
            format!(
                "label {label:?} names feature {one} and feature {other}; a label names one feature"
            ),
        )
        .into()),
    }
}

/// A name given anew leaves the feature it named before.
async fn remove_superseded(connection: &mut SqliteConnection, import: i64) -> Result<()> {
    sqlx::query(
        "DELETE FROM labels WHERE id IN (SELECT old.id FROM labels new INDEXED BY labels_import \
         CROSS JOIN labels old INDEXED BY labels_folded \
         ON old.folded = new.folded AND old.sae = new.sae AND old.label = new.label \
         AND old.source = new.source AND old.import <> new.import \
         AND (old.candidate OR NOT new.candidate) WHERE new.import = ?)",
    )
    .bind(import)
    .execute(connection)
    .await?;
    Ok(())
}

/// The rows of one kind of match that are of no better kind, behind the
/// cursor; None where the kind cannot match.
fn search_query(search: &LabelSearch<'_>) -> Option<QueryBuilder<Sqlite>> {
    let text = search.query.to_owned();
    let end = prefix_end(search.query);
    let key = search.after.map_or(0, |(_, key)| key);
    let mut query;
    match search.kind {
        Match::Exact => {
            query = select(BY_TEXT);
            query.push("WHERE l.folded = ").push_bind(text);
            query.push(" AND l.id > ").push_bind(key);
        }
        Match::Prefix => {
            query = select(BY_TEXT);
            let after = search.after.map_or(text, |(folded, _)| folded.to_owned());
            // Behind the query itself come its exact matches; no key is that large.
            let key = search.after.map_or(i64::MAX, |(_, key)| key);
            query.push("WHERE (l.folded, l.id) > (").push_bind(after);
            query
                .push(", ")
                .push_bind(key)
                .push(") AND l.folded < ")
                .push_bind(end);
        }
        Match::Words => {
            query = select(BY_WORDS);
            query
                .push("WHERE label_words MATCH ")
                .push_bind(words_pattern(search.query)?);
            query.push(" AND w.rowid > ").push_bind(key);
            query.push(" AND NOT (l.folded >= ").push_bind(text);
            query.push(" AND l.folded < ").push_bind(end).push(")");
        }
        Match::Part => {
            query = select(BY_PARTS);
            query
                .push("WHERE label_parts MATCH ")
                .push_bind(part_pattern(search.query)?);
            query.push(" AND p.rowid > ").push_bind(key);
            query.push(" AND NOT (l.folded >= ").push_bind(text);
            query.push(" AND l.folded < ").push_bind(end).push(")");
            if let Some(words) = words_pattern(search.query) {
                query.push(" AND NOT EXISTS (SELECT 1 FROM label_words WHERE label_words MATCH ");
                query.push_bind(words).push(" AND rowid = l.id)");
            }
        }
    }
    Some(query)
}

/// Every word of the query as a prefix.
fn words_pattern(query: &str) -> Option<String> {
    let words: Vec<String> = query
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(|word| format!("\"{word}\"*"))
        .collect();
    (!words.is_empty()).then(|| words.join(" "))
}

/// The query as it is; a trigram index knows nothing of shorter texts.
fn part_pattern(query: &str) -> Option<String> {
    (query.chars().count() >= 3).then(|| format!("\"{}\"", query.replace('"', "\"\"")))
}
